"""The training set, written by the language model: its answers to instructions about transcripts.

Every kind of instruction is asked about every transcript that can be heard, in one of the kind's
wordings; the most likely answer is taken. No right answer of a manifest is read here. A part is
some questions for every slot, so that a run that is stopped goes on with the same answers. What is
dropped is counted by its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmethods.layout import Layout
from jaxmethods.lsm.augmentation import INSTRUCTIONS, keep_response
from jaxmethods.lsm.prompts import padded
from jaxmethods.lsm.recipes.recordings.config import AugmentConfig
from jaxmethods.lsm.recipes.recordings.hearing import HEARD
from jaxmethods.lsm.recipes.recordings.models import Models
from jaxmethods.lsm.recipes.recordings.rows import TRAIN, Rows
from jaxmethods.models import decoder
from jaxmethods.models.decoder import Refilled
from jaxmethods.models.decoder.generation import End
from jaxmethods.models.decoder.network import RULES
from jaxmethods.stages import Arrays, Compute, Part, Place, Results

GENERATED = "generated"
ROUNDS = 8
"""Questions of one program for each slot: the more, the less its last answers weigh, behind which
slots stay empty."""
PLACED = Layout(batch=RULES)
LONG_PROMPT, CUT, UNPUNCTUATED, LENGTH = (
    "the prompt is too long",
    "the answer was cut off",
    "the answer doesn't end in punctuation",
    "the answer is too short or too long",
)


class Written(NamedTuple):
    """Answers of one kind to what is said in every recording."""

    wordings: tuple[str, ...]
    """[C]: what was asked."""
    texts: tuple[str, ...]
    """[C]: answers."""
    kept: np.ndarray
    """[C] bool: which of them are learned from."""
    dropped: Counter[str]
    """Why others aren't."""
    steps: int
    """Passes of all slots that they took."""


def generated_stage(models: Models, rows: Rows) -> Compute:
    """The language model answers every kind of instruction about every recording's transcript."""
    kinds = models.generated_kinds()
    slots = models.run.augment.batch
    size = slots * ROUNDS
    program = text_program(models, models.run.augment.new_tokens, slots)

    def transcripts(results: Results) -> list[str]:
        return [rows.splits[TRAIN][number].text for number in results[HEARD][TRAIN].rows]

    def write(texts: Sequence[str], wordings: Sequence[str], params: Any, place: Place) -> Arrays:
        asked = [models.text_prompt(*pair) for pair in zip(wordings, texts, strict=True)]
        longest = models.run.augment.longest_prompt
        fits = np.asarray([len(ids) < longest for ids in asked])
        if not fits.any():
            nothing = np.zeros((len(fits), models.run.augment.new_tokens), np.int32)
            return {"tokens": nothing, "lengths": nothing[:, 0], "steps": np.int32(0), "fits": fits}
        prompts = [ids if fit else [] for ids, fit in zip(asked, fits, strict=True)]
        found = answer_prompts(program, params(), prompts, longest, slots, models.end, place)
        return found._asdict() | {"fits": fits}

    def parts(results: Results, place: Place) -> list[Part]:
        texts = transcripts(results)
        params = cache(lambda: place(models.read_language(), PLACED))  # where a part is missing
        found = []
        for kind in kinds:
            wordings = wordings_of(models, kind, len(texts), GENERATED)
            for start in range(0, len(texts), size):
                own = slice(start, start + size)
                work = partial(write, texts[own], wordings[own], params, place)
                found.append(Part(f"{kind}-{start:06d}", work))
        return found

    def finish(found: Sequence[Arrays]) -> dict[str, Written]:
        each = len(found) // max(len(kinds), 1)
        return {
            kind: written(models, kind, found[number * each : (number + 1) * each])
            for number, kind in enumerate(kinds)
        }

    return Compute(GENERATED, parts, finish, counts)


def written(models: Models, kind: str, parts: Sequence[Arrays]) -> Written:
    """Answers as texts, and which of them are learned from."""
    tokens, lengths, fits = (
        np.concatenate([part[name] for part in parts]) for name in ("tokens", "lengths", "fits")
    )
    config = models.run.augment
    said = [row[:count].tolist() for row, count in zip(tokens, lengths, strict=True)]
    texts = models.decode(said)
    reasons = [
        LONG_PROMPT if not fit else refusal(config, ids, text, models.ends)
        for fit, ids, text in zip(fits, said, texts, strict=True)
    ]
    return Written(
        tuple(wordings_of(models, kind, len(texts), GENERATED)),
        tuple(texts),
        np.asarray([reason is None for reason in reasons]),
        Counter(reason for reason in reasons if reason is not None),
        int(sum(np.sum(part["steps"]) for part in parts)),
    )


def refusal(config: AugmentConfig, ids: Sequence[int], text: str, end: End) -> str | None:
    """Why an answer is not learned from.

    Args:
        config: what is kept.
        ids: of the answer, its end included.
        text: of the answer.
        end: the token, or tokens, that end an answer.

    Returns:
        A reason; None where it is learned from.
    """
    ends = end if isinstance(end, tuple) else (end,)
    if not ids or ids[-1] not in ends:
        return CUT
    if config.punctuated and not keep_response(text, config.compat_filter):
        return UNPUNCTUATED
    said = bool(text.strip()) and config.shortest <= len(ids) <= config.longest
    return None if said else LENGTH


def counts(found: dict[str, Written]) -> dict[str, Any]:
    """How many rows there are, how many were dropped, by kind, and passes of all slots."""
    values: dict[str, Any] = {
        "rows": sum(len(own.kept) for own in found.values()),
        "steps": sum(own.steps for own in found.values()),
        "dropped": sum(own.dropped.total() for own in found.values()),
    }
    return values | {f"dropped_{kind}": own.dropped.total() for kind, own in found.items()}


def wordings_of(models: Models, kind: str, rows: int, purpose: str) -> list[str]:
    """One of a kind's wordings for each of several rows.

    Args:
        models: whose run's seed draws.
        kind: of instructions.
        rows: how many.
        purpose: rows of another purpose are drawn anew.

    Returns:
        Instructions.
    """
    known = models.wordings[kind]
    seed = [models.run.seed, list(INSTRUCTIONS).index(kind), sum(map(ord, purpose))]
    chosen = np.random.default_rng(seed).integers(0, len(known), rows)
    return [known[number] for number in chosen]


def text_program(models: Models, new_tokens: int, slots: int) -> Any:
    """(parameters, prompts [B, P], mask) -> `Refilled`, compiled."""
    config = models.language

    def answer(params: Any, ids: jax.Array, mask: jax.Array) -> Refilled:
        return decoder.generate_in_slots(
            params,
            config,
            ids,
            mask=mask,
            new_tokens=new_tokens,
            slots=slots,
            end=models.ends,
            pad=models.end,
        )

    return jax.jit(answer)


def answer_prompts(
    program: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    length: int,
    slots: int,
    pad: int,
    place: Place,
) -> Refilled:
    """Answers to prompts, some for each slot at a time, all of one shape.

    Args:
        program: (params, ids [B, P], mask) -> `Refilled` [..., B, N].
        params: of the language model.
        prompts: ids; without any, a prompt is not answered.
        length: P, of the longest prompt.
        slots: of the program; B is `ROUNDS` times as many.
        pad: stands behind a prompt.
        place: of the stage.

    Returns:
        NumPy arrays [..., n, N], [..., n] and [...], the steps of all programs.
    """
    found: list[Refilled] = []
    size = slots * ROUNDS
    for start in range(0, len(prompts), size):
        own = list(prompts[start : start + size])
        full = [*own, *[[]] * (size - len(own))]
        answers = program(params, *padded(full, pad, length))
        tokens, lengths, steps = jax.device_get(place(answers, Layout()))
        found.append(Refilled(tokens[..., : len(own), :], lengths[..., : len(own)], steps))
    tokens, lengths, steps = zip(*found, strict=True)
    return Refilled(
        np.concatenate(tokens, axis=-2),  # type: ignore[arg-type]
        np.concatenate(lengths, axis=-1),  # type: ignore[arg-type]
        np.sum(steps, axis=0, dtype=np.int32),  # type: ignore[arg-type]
    )
