"""Norm voting's norms for multiple-choice questions: ours with shared prefixes, and without.

Questions have the sizes of TruthfulQA MC1 under Llama 2's tokenizer and Mistral's template: 73
tokens that all share, 5.1 candidates a question, sequences of 92.4 + 11.3 tokens in the mean.
Tokens are random: what they are doesn't change the work. Modes: `tree` runs nothing twice, `naive`
one row for each candidate in padded batches, `one by one` one candidate a call. `transformers`
does the same in batches without the head, and one by one as the published code does, with it. All
of them find the same norms, or the benchmark stops.
"""

# PyTorch and transformers are optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.decoder import Exported, Model, has_transformers, make_model
from benchmarks.harness import (
    Row,
    Settings,
    Timing,
    prepare_call,
    prepare_torch,
    reference,
    time_in_turns,
)
from jaxmethods.novo.norms import sequence_norms
from jaxmethods.novo.score import score
from jaxmethods.novo.tree import Sequences, build_tree

INSTRUCTION, QUESTION, ANSWER = 73, 19.4, 11.3
"""Tokens: of the instruction, and means of what belongs to the question and to the candidate."""
CANDIDATES = 4186 / 817
QUESTIONS = {"cpu": 41, "gpu": 817, "tpu": 817}
"""All of TruthfulQA on an accelerator, a twentieth of it on CPU."""
BATCH_TOKENS = 2048
TOLERANCE = 2e-4
"""Relative, float32; in bfloat16 norms of different programs are only near each other."""


def rows(settings: Settings) -> Iterator[Row]:
    """Ours in three modes and `transformers` in two, all in turns."""
    model = make_model()
    sequences = draw_questions(QUESTIONS[jax.default_backend()], model.config.vocab_size)
    candidates = sum(map(len, sequences))
    works = {name: prepare_call(find(model, sequences)) for name, find in MODES.items()}
    with Exported(model) as theirs:
        if has_transformers():
            for name in ("torch, batched", "torch, one by one"):
                work = prepare_torch(partial(torch_norms, theirs, name, sequences), settings)
                works |= {name: work} if work else {}
        check_same({name: work.call() for name, work in works.items()})
        timings = dict(zip(works, time_in_turns(list(works.values()), settings), strict=True))
    cost = build_tree(sequences, batch_tokens=BATCH_TOKENS).cost
    for mode, other in {
        "tree": "torch, batched",
        "naive": "torch, batched",
        "one by one": "torch, one by one",
    }.items():
        yield Row(
            name="novo/norms",
            sizes={"mode": mode, "candidates": candidates, "cores": settings.cores},
            work=candidates,
            unit="candidates/s",
            ours=timings[mode],
            reference=reference("novo/norms_llama") if jax.default_backend() == "cpu" else None,
            torch=timings.get(other),
            note=describe(mode, timings, cost),
        )


def draw_questions(number: int, vocabulary: int, seed: int = 0) -> Sequences:
    """Token ids of questions, of their candidates."""
    rng = np.random.default_rng(seed)

    def tokens(count: int) -> list[int]:
        return rng.integers(3, vocabulary, count).tolist()

    instruction, sequences = tokens(INSTRUCTION), []
    for _ in range(number):
        prompt = instruction + tokens(1 + rng.poisson(QUESTION - 1))
        candidates = 2 + rng.poisson(CANDIDATES - 2)
        sequences.append([prompt + tokens(1 + rng.poisson(ANSWER - 1)) for _ in range(candidates)])
    return sequences


def by_tree(model: Model, sequences: Sequences) -> Callable[[], np.ndarray]:
    return partial(flat_norms, model, sequences, "tree")


def by_rows(model: Model, sequences: Sequences) -> Callable[[], np.ndarray]:
    return partial(flat_norms, model, sequences, "naive")


def flat_norms(model: Model, sequences: Sequences, mode: Any) -> np.ndarray:
    """Norms [candidates, L H]; planning and transfers are part of the work."""
    scores = score(
        model.params,
        model.config,
        sequences,
        mode=mode,
        dtype=model.dtype,
        batch_tokens=BATCH_TOKENS,
    )
    return scores.norms[scores.mask]


def one_by_one(model: Model, sequences: Sequences) -> Callable[[], np.ndarray]:
    """A call for each candidate, padded to one of few lengths."""
    run = jax.jit(partial(sequence_norms, config=model.config, dtype=model.dtype))
    flat = [ids for question in sequences for ids in question]

    def call() -> np.ndarray:
        found = []
        for ids in flat:
            padded = np.zeros((1, -(-len(ids) // 16) * 16), np.int32)
            padded[0, : len(ids)] = ids
            lengths = np.array([len(ids)], np.int32)
            found.append(run(model.params, ids=padded, lengths=lengths))
        return np.concatenate(jax.device_get(found))

    return call


MODES: dict[str, Callable[[Model, Sequences], Callable[[], np.ndarray]]] = {
    "tree": by_tree,
    "naive": by_rows,
    "one by one": one_by_one,
}


def torch_norms(
    theirs: Exported, name: str, sequences: Sequences, device: str
) -> Callable[[], np.ndarray]:
    """The same in `transformers`."""
    from benchmarks import torch_decoder

    model = theirs.load(device)
    if name == "torch, one by one":
        return partial(torch_decoder.norms_one_by_one, model, sequences)
    return partial(torch_decoder.norms_batched, model, sequences, BATCH_TOKENS)


def check_same(norms: dict[str, np.ndarray]) -> None:
    """Raises `RuntimeError` unless all found the same norms."""
    tolerance = TOLERANCE if jax.default_backend() == "cpu" else 5e-2
    for name, values in norms.items():
        error = np.max(np.abs(values / norms["tree"] - 1))
        if not error < tolerance:
            raise RuntimeError(f"norms of {name} differ from the tree's by {error:.1e}")


def describe(mode: str, timings: dict[str, Timing], cost: Any) -> str:
    """What sharing saves."""
    slower = {name: timings[name].median / timings[mode].median for name in MODES if name != mode}
    times = ", ".join(f"{ratio:.1f}x {name}" for name, ratio in slower.items())
    tokens = f", {cost.naive / cost.tokens:.2f}x fewer tokens" if mode == "tree" else ""
    return times + tokens
