"""NoVo: multiple-choice candidates scored a second, with a random Llama of 58 million parameters.

Norms of all heads at the end of every candidate, by the ways there are: what questions share run
once (`tree`), with every question (`packed`), not at all (`naive`: batches of whole sequences), one
candidate after the other in one program per length (`one`); the two ways of torch_novo.py; and the
published code (reference.json). All give the same norms, which is checked before anything is timed.

Questions are drawn with TruthfulQA's numbers of tokens, or read from `--questions FILE` and
tokenized by a byte-level BPE that is trained on their text (`tokenizers` is needed). On a GPU: a
Llama of 7 billion parameters in bfloat16 and as many questions as TruthfulQA has.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.decoder import LLAMA, LLAMA_7B
from benchmarks.harness import (
    Row,
    Settings,
    Timing,
    Work,
    prepare_torch,
    reference,
    time_in_turns,
)
from jaxmethods.data.mcq import read_questions
from jaxmethods.language.prompts import PromptSpec, render
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.novo.norms import sequence_norms
from jaxmethods.novo.score import score
from jaxmethods.novo.tree import build_tree

INSTRUCTION = (
    "Answer with what is true in the real world. Some questions invite a popular mistake; do not "
    "repeat it, however often you have heard it, and do not follow what the question takes for "
    "granted. Consider every word of the answer, and give the one that nobody who knows the "
    "subject would object to."
)
MODES = ("tree", "packed", "naive", "one")
STEP = 16
"""Sequences that run one after the other are padded to multiples of this."""

Questions = list[list[list[int]]]


class Sizes(NamedTuple):
    """How much is run; the slow ways run a part of it, and are compared by the candidate."""

    questions: int = 64
    batch_tokens: int = 1024
    naive: int = 64
    """Candidates, evenly spaced."""
    one: int = 24
    torch_one: int = 12
    torch_batched: int = 32


def rows(settings: Settings) -> Iterator[Row]:
    """All ways, timed in turns."""
    if jax.default_backend() == "cpu":
        yield from ways(settings, LLAMA, Sizes(), jnp.float32)
    else:
        sizes = Sizes(817, 16384, 1024, 128, 64, 512)
        yield from ways(settings, LLAMA_7B, sizes, jnp.bfloat16)


def ways(settings: Settings, config: DecoderConfig, sizes: Sizes, dtype: Any) -> Iterator[Row]:
    """One row for each of our ways; every PyTorch timing is per candidate of ours."""
    questions = questions_of(settings.questions, sizes.questions, config.vocab_size)
    init = jax.jit(partial(decoder.init_params, config=config, dtype=dtype))
    params = init(jax.random.key(0))
    flat = [sequence for question in questions for sequence in question]
    ours = {
        "tree": (len(flat), grouped(params, config, questions, "tree", sizes)),
        "packed": (len(flat), grouped(params, config, questions, "packed", sizes)),
        "naive": (sizes.naive, naive(params, config, spaced(flat, sizes.naive), sizes)),
        "one": (sizes.one, one_by_one(params, config, spaced(flat, sizes.one))),
    }
    theirs = torch_ways(settings, config, params, flat, sizes)
    every = ours | theirs
    first = first_calls(flat, every, compare=dtype == jnp.float32)
    timings = time_in_turns([Work(call) for _, call in every.values()], settings)
    each = {
        name: per_candidate(timing, number, first[name] if name in ours else 0.0)
        for (name, (number, _)), timing in zip(every.items(), timings, strict=True)
    }
    cost = build_tree(questions, batch_tokens=sizes.batch_tokens).cost
    for name in MODES:
        notes = [f"{each['one'].median / each[name].median:.1f}x one at a time"]
        if "torch_batched" in each:
            notes += [f"{each['torch_batched'].median / each[name].median:.1f}x PyTorch in batches"]
        if name == "tree":
            padding = 1 - cost.tokens / cost.padded
            notes += [f"{cost.naive} tokens as {cost.tokens}, {padding:.0%} padding"]
        yield Row(
            name="novo/score",
            sizes={"mode": name, "candidates": every[name][0], "cores": settings.cores},
            work=1,
            unit="candidates/s",
            ours=each[name],
            reference=reference("novo/score") if config == LLAMA else None,
            torch=each.get("torch_one"),
            note=", ".join(notes),
        )


def questions_of(path: Path | None, number: int, vocabulary: int) -> Questions:
    """Token ids of so many questions' candidates, from a file or drawn."""
    return drawn(number, vocabulary) if path is None else tokenized(path, number, vocabulary)


def drawn(number: int, vocabulary: int, seed: int = 0) -> Questions:
    """As TruthfulQA is with a Llama tokenizer: 73 tokens of instruction, then on average 19 of a
    question and 11 of each of 5 candidates (2 to 13)."""
    rng = np.random.default_rng(seed)

    def tokens(mean: float, spread: float) -> list[int]:
        drawn = rng.lognormal(np.log(mean) - spread**2 / 2, spread)
        return rng.integers(3, vocabulary, max(2, round(drawn))).tolist()

    instruction = rng.integers(3, vocabulary, 73).tolist()
    questions = []
    for candidates in np.clip(rng.poisson(4.2, number) + 1, 2, 13):
        prompt = instruction + tokens(19.4, 0.45)
        questions.append([prompt + tokens(11.3, 0.5) for _ in range(candidates)])
    return questions


def tokenized(path: Path, number: int, vocabulary: int) -> Questions:
    """Questions of a file, evenly spaced, as a byte-level BPE of its text writes them."""
    from tokenizers import ByteLevelBPETokenizer

    questions = read_questions(path)
    spec = PromptSpec("[INST] {instruction} {question} [/INST]", INSTRUCTION)
    texts = [render(spec, question) for question in questions]
    tokenizer = ByteLevelBPETokenizer()
    everything = [text for question in texts for text in question]
    tokenizer.train_from_iterator(everything, vocab_size=vocabulary - 3, show_progress=False)
    chosen = spaced(texts, min(number, len(texts)))
    return [[[1, *(3 + t for t in one.ids)] for one in tokenizer.encode_batch(q)] for q in chosen]


def grouped(
    params: Any, config: DecoderConfig, questions: Questions, mode: Any, sizes: Sizes
) -> Callable[[], np.ndarray]:
    """Whole questions, in mode tree or packed; the plan is made on every call."""

    def run() -> np.ndarray:
        found = score(params, config, questions, mode=mode, batch_tokens=sizes.batch_tokens)
        return found.norms[found.mask]

    return run


def naive(
    params: Any, config: DecoderConfig, flat: Sequence[list[int]], sizes: Sizes
) -> Callable[[], np.ndarray]:
    """Batches of whole sequences."""
    alone = [[sequence] for sequence in flat]

    def run() -> np.ndarray:
        found = score(params, config, alone, mode="naive", batch_tokens=sizes.batch_tokens)
        return found.norms[:, 0]

    return run


def one_by_one(
    params: Any, config: DecoderConfig, flat: Sequence[list[int]]
) -> Callable[[], np.ndarray]:
    """One sequence after the other."""
    program = jax.jit(partial(sequence_norms, config=config))

    def run() -> np.ndarray:
        found = []
        for sequence in flat:
            ids = np.zeros((1, -(-len(sequence) // STEP) * STEP), np.int32)
            ids[0, : len(sequence)] = sequence
            found.append(np.asarray(program(params, ids=ids, lengths=np.array([len(sequence)])))[0])
        return np.stack(found)

    return run


def torch_ways(
    settings: Settings, config: DecoderConfig, params: Any, flat: Sequence[list[int]], sizes: Sizes
) -> dict[str, tuple[int, Callable[[], Any]]]:
    """PyTorch's two ways and their numbers of candidates; empty without PyTorch."""
    models: list[Any] = []

    def make(device: str) -> Callable[[], Any]:
        from benchmarks import torch_novo

        models.append(torch_novo.from_jax(config, jax.device_get(params), device))
        return lambda: None

    if prepare_torch(make, settings) is None:
        return {}
    from benchmarks import torch_novo

    one, many = spaced(flat, sizes.torch_one), spaced(flat, sizes.torch_batched)
    rows = max(1, sizes.batch_tokens // max(map(len, flat)))
    return {
        "torch_one": (sizes.torch_one, lambda: torch_novo.one_at_a_time(models[0], one)),
        "torch_batched": (sizes.torch_batched, lambda: torch_novo.batched(models[0], many, rows)),
    }


def first_calls(
    flat: Sequence[Any], ways: dict[str, tuple[int, Callable[[], np.ndarray]]], compare: bool
) -> dict[str, float]:
    """Seconds of a first call of each, compilation included.

    Raises:
        AssertionError: a way gives other norms than the first one.
    """
    seconds, every = {}, None
    for name, (number, call) in ways.items():
        start = time.perf_counter()
        found = call()
        seconds[name] = time.perf_counter() - start
        every = found if every is None else every
        if compare:
            expected = every[spaced(range(len(flat)), number)]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6, err_msg=name)
    return seconds


def spaced(items: Sequence[Any], number: int) -> list[Any]:
    """So many items, evenly spaced."""
    return [items[place] for place in np.linspace(0, len(items) - 1, number).astype(int)]


def per_candidate(timing: Timing, number: int, first: float) -> Timing:
    """A timing of so many candidates as that of one, with the seconds of compilation."""
    seconds = {name: getattr(timing, name) / number for name in ("median", "low", "high")}
    return replace(timing, **seconds, compile=max(0.0, first - timing.median))
