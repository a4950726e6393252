"""How much is run and compiled, on real questions where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from jaxmethods.data.mcq import read_questions
from jaxmethods.data.tokenizer import byte_tokenizer
from jaxmethods.language.prompts import PromptSpec, tokenize_questions
from jaxmethods.novo.score import _row_norms, _run_root, score
from jaxmethods.novo.tree import build_tree
from tests.models.decoder.decoders import LLAMA, random_params
from tests.novo.test_norms import random_sequences

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("JAXMETHODS_SHARED", "absent")) / "data" / "mcq"


def other_tokens(sequences):
    """Sequences of the same lengths and shared prefixes."""
    return [[[3 + (5 * token) % 37 for token in one] for one in question] for question in sequences]


def test_programs_are_as_many_as_counted_and_serve_other_questions_of_the_same_lengths():
    config = LLAMA.model_copy(update={"layers": 1, "width": 8})
    params, sequences = random_params(config), random_sequences(6, questions=9)
    sequences += random_sequences(7, questions=3, root=40)
    plan = build_tree(sequences, batch_tokens=96)
    _run_root.clear_cache()
    _row_norms.clear_cache()
    found = []
    for questions in (sequences, other_tokens(sequences)):
        score(params, config, questions, batch_tokens=96)
        found.append(_run_root._cache_size() + _row_norms._cache_size())
    assert found == [plan.cost.shapes, plan.cost.shapes]
    assert plan.cost.shapes > 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="the question sets are not here")
@pytest.mark.parametrize("name", ["truthfulqa_mc1", "piqa_valid", "csqa2_dev"])
def test_what_real_questions_share_is_run_once(name):
    prompt = yaml.safe_load((ROOT / "configs" / "novo" / "truthfulqa.yaml").read_text())["prompt"]
    spec = PromptSpec(prompt["template"], prompt["instruction"], prompt["question"])
    questions = read_questions(SHARED / f"{name}.jsonl")
    tokens = tokenize_questions(byte_tokenizer, spec, questions, vocab_size=259, max_positions=4096)
    cost = build_tree(tokens.sequences, tokens.prompt_lengths).cost
    assert cost.naive == sum(len(one) for question in tokens.sequences for one in question)
    distinct = {tuple(one) for question in tokens.sequences for one in question}
    assert cost.tokens <= cost.naive / (3 if name == "truthfulqa_mc1" else 1.5)
    assert 1 - cost.tokens / cost.padded <= 0.25
    assert cost.shapes <= 12
    assert np.sum([len(one) for one in distinct]) <= cost.naive
