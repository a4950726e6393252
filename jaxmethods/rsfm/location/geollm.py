r"""GeoLLM: a language model is asked for a number of a place.

    Coordinates: (34.52, 69.20)
    Address: "Kabul, AF"
    Nearby Places:
    "
    376 km South-East: Karachi
    ...
    "
    UTC offset (On a Scale from 0.0 to 9.9):

    y^ = sum_a p(a | prompt) a            over answers a, p from the log-likelihoods of their tokens

Manvi et al. 2023, arXiv 2310.06213, section 3: what a model knows of a place comes out where the
prompt names what lies around. They fine-tune and let the model write; here any decoder is scored as
it is, by the expectation over the answers that the scale has. Numbers are scaled to it by their
range. `rsfm.location.regression` has what it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.mcq import Question
from jaxmethods.data.tokenizer import Tokenize
from jaxmethods.language.prompts import PromptSpec, tokenize_questions
from jaxmethods.models import decoder
from jaxmethods.models.decoder import DecoderConfig
from jaxmethods.numerics.compiled import compiled
from jaxmethods.rsfm.location.regression import kilometers

DIRECTIONS = (
    *("North", "North-East", "East", "South-East"),
    *("South", "South-West", "West", "North-West"),
)
LARGEST = 9.9
ANSWERS = tuple(f"{value:.1f}" for value in np.arange(0, 10, 0.5))
"""Every fifth answer of the scale: 20 rows a place in place of 100."""


class Near(NamedTuple):
    """A place that lies near another."""

    name: str
    kilometers: float
    direction: str


def surroundings(
    coordinates: np.ndarray, names: Sequence[str], count: int = 5
) -> list[tuple[Near, ...]]:
    """What lies around every place.

    Args:
        coordinates: [N, 2] latitude and longitude in degrees.
        names: of the N places.
        count: how many of the others.

    Returns:
        The nearest ones of every place, the nearest first.
    """
    distances = kilometers(coordinates, coordinates)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :count]
    found = []
    for own, row in enumerate(order):
        pairs = [(int(other), coordinates[[own, other]]) for other in row]
        near = [
            Near(names[other], float(distances[own, other]), _direction(pair))
            for other, pair in pairs
        ]
        found.append(tuple(near))
    return found


def prompt(
    place: np.ndarray, address: str, near: Sequence[Near], quantity: str, scale: str = "0.0 to 9.9"
) -> str:
    """The text after which a model writes a number.

    Args:
        place: [2] latitude and longitude in degrees.
        address: of the place; "" leaves the line out.
        near: what lies around; none leaves the lines out.
        quantity: what is asked for.
        scale: of the answer.

    Returns:
        The prompt, without an answer.
    """
    lines = [f"Coordinates: ({place[0]:.2f}, {place[1]:.2f})"]
    if address:
        lines.append(f'Address: "{address}"')
    if near:
        around = [f"{own.kilometers:.0f} km {own.direction}: {own.name}" for own in near]
        lines += ["Nearby Places:", '"', *around, '"']
    return "\n".join([*lines, f"{quantity} (On a Scale from {scale}):"])


def to_scale(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Numbers [N] on the scale of 0 to 9.9, by the range of those to learn from."""
    low, high = float(np.min(reference)), float(np.max(reference))
    return np.clip((np.asarray(values) - low) / max(high - low, 1e-12), 0, 1) * LARGEST


def expected_answers(
    params: Any,
    config: DecoderConfig,
    tokenize: Tokenize,
    prompts: Sequence[str],
    answers: Sequence[str] = ANSWERS,
    batch: int = 64,
) -> np.ndarray:
    """What a decoder expects after prompts.

    Args:
        params: of the decoder.
        config: of the decoder.
        tokenize: its tokenizer.
        prompts: of N places.
        answers: K numbers, as they are written.
        batch: rows, of one answer each, that are run at once.

    Returns:
        [N] float64 means of the answers, by their likelihoods.

    Raises:
        UserError: a prompt that is longer than the model's positions, or a tokenizer of another
            model.

    """
    questions = [
        Question(f"place {number}", text, tuple(answers), 0) for number, text in enumerate(prompts)
    ]
    tokenized = tokenize_questions(
        tokenize,
        PromptSpec(template="{question}"),
        questions,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
    )
    flat = [ids for question in tokenized.sequences for ids in question]
    starts = np.repeat(tokenized.prompt_lengths, len(answers)).astype(np.int32)
    longest = max(map(len, flat))
    rows = np.zeros((-(-len(flat) // batch) * batch, longest), np.int32)
    ends = np.full(len(rows), 2, np.int32)
    for place, ids in enumerate(flat):
        rows[place, : len(ids)], ends[place] = ids, len(ids)
    begins = np.ones(len(rows), np.int32)
    begins[: len(flat)] = starts
    parts = [
        tuple(jnp.asarray(own[n : n + batch]) for own in (rows, begins, ends))
        for n in range(0, len(rows), batch)
    ]
    found = [np.asarray(log_likelihoods(params, config, *part)) for part in parts]
    scores = np.concatenate(found)[: len(flat)].reshape(len(prompts), -1).astype(np.float64)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares @ np.array([float(own) for own in answers]) / shares.sum(1)


@compiled("config")
def log_likelihoods(
    params: Any, config: DecoderConfig, ids: jax.Array, starts: jax.Array, ends: jax.Array
) -> jax.Array:
    """How likely the ends of rows are after their beginnings.

    Args:
        params: of the decoder.
        config: static.
        ids: [R, T] int32, padded on the right.
        starts: [R] the first token that counts, at least 1.
        ends: [R] the first token that doesn't count any more.

    Returns:
        [R] float32 sums of log-probabilities.
    """
    logits = decoder.forward(params, config, ids[:, :-1]).logits  # [R, T - 1, V]
    each = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=2)[..., 0]
    place = jnp.arange(1, ids.shape[1])
    counts = (place >= starts[:, None]) & (place < ends[:, None])
    return jnp.sum(jnp.where(counts, each, 0), axis=1)


def _direction(pair: np.ndarray) -> str:
    """The compass direction, one of eight, from the first place to the second."""
    (a, b), (c, d) = np.radians(pair)
    east = np.sin(d - b) * np.cos(c)
    north = np.cos(a) * np.sin(c) - np.sin(a) * np.cos(c) * np.cos(d - b)
    return DIRECTIONS[round(float(np.degrees(np.arctan2(east, north))) / 45) % 8]
