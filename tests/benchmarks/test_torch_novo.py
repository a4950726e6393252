"""All ways of the norm voting benchmark give the same norms, PyTorch's too."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import novo as bench
from benchmarks.decoder import LLAMA
from benchmarks.harness import Settings
from jaxmethods.novo.tree import build_tree

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

SMALL = {"vocab_size": 300, "width": 32, "mlp_width": 40, "layers": 2, "heads": 4, "kv_heads": 2}
CONFIG = LLAMA.model_copy(update=SMALL | {"head_dim": 8, "rotary_dim": 8})
SIZES = bench.Sizes(3, 512, naive=4, one=2, torch_one=2, torch_batched=3)


def test_every_way_gives_the_norms_of_the_tree():
    pytest.importorskip("torch")
    rows = list(bench.ways(Settings(3, 0.1, 1), CONFIG, SIZES, jnp.float32))
    assert [row.sizes["mode"] for row in rows] == list(bench.MODES)
    assert all(row.torch for row in rows)
    assert "PyTorch in batches" in rows[0].note


def test_another_norm_is_noticed():
    ways = {"tree": (4, lambda: np.ones((4, 2))), "other": (2, lambda: np.full((2, 2), 1.01))}
    with pytest.raises(AssertionError, match="other"):
        bench.first_calls(range(4), ways, compare=True)


def test_drawn_questions_have_the_lengths_of_truthfulqa():
    questions = bench.questions_of(None, 400, 32_000)
    number = np.mean([len(question) for question in questions])
    assert number == pytest.approx(4186 / 817, rel=0.05)
    cost = build_tree(questions).cost
    assert cost.naive / sum(map(len, questions)) == pytest.approx(435_007 / 4186, rel=0.02)
    assert cost.naive / cost.tokens == pytest.approx(6.96, rel=0.05)


def test_questions_of_a_file_are_tokenized_by_a_tokenizer_of_their_text(tmp_path):
    pytest.importorskip("tokenizers")
    file = tmp_path / "questions.jsonl"
    row = {"question": "What is it?", "choices": ["This", "That thing"], "label": 0}
    file.write_text("".join(json.dumps(row | {"id": str(i)}) + "\n" for i in range(5)))
    questions = bench.questions_of(file, 3, 300)
    assert [len(question) for question in questions] == [2, 2, 2]
    assert max(max(sequence) for question in questions for sequence in question) < 300
