"""Models answer prompts on the mesh, some rows at a time."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.kid.exposure import token_divergences
from jaxmethods.kid.loss import Batch
from jaxmethods.kid.model import LanguageModel
from jaxmethods.kid.responses import Responses, with_responses
from jaxmethods.layout import Layout, Rule
from jaxmethods.models.decoder import Generated
from jaxmethods.stages import Place

SPLIT = Layout(batch=(Rule("", ("data",)),))
"""Rows are split over the mesh."""


def answer(
    language: LanguageModel,
    params: Any,
    asked: tuple[Any, Any],
    keys: jax.Array,
    place: Place,
    *,
    rows: int,
    length: int,
    temperature: float,
    per_seed: bool,
    beams: int = 1,
) -> Generated:
    """Answers all prompts, some rows at a time.

    Args:
        language: the model.
        params: on the mesh; with an axis of seeds where `per_seed`.
        asked: prompts [Q, P] and their mask.
        keys: [S] typed.
        place: puts rows on the mesh.
        rows: prompts that are answered at one time.
        length: R.
        temperature: 0 takes the most likely tokens.
        per_seed: whether every seed has parameters of its own.
        beams: K, of a search without chance, where there are several.

    Returns:
        tokens [S, Q, R] and lengths [S, Q], of numpy; of several beams [S, Q, K, R] and [S, Q, K].
    """
    program = _program(language, length, temperature, per_seed, beams)
    prompts, mask = (np.asarray(leaf) for leaf in asked)
    whole = Layout()
    found = []
    for number, start in enumerate(range(0, len(prompts), rows)):
        own = [leaf[start : start + rows] for leaf in (prompts, mask)]
        count = len(own[0])
        # Rows without a token are not answered.
        own = [np.pad(leaf, [(0, rows - count), (0, 0)]) for leaf in own]
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        answers = program(params, *place(own, SPLIT), place(folded, whole))
        host = jax.device_get(place(answers, whole))
        found.append(jax.tree.map(lambda leaf, count=count: leaf[:, :count], host))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *found)


@lru_cache(maxsize=8)
def _program(
    language: LanguageModel, length: int, temperature: float, per_seed: bool, beams: int
) -> Any:
    """(parameters, prompts, mask, keys [S]) -> answers [S, ...]."""
    generate, search = language.generate, language.search
    assert generate is not None
    assert search is not None

    def one(params: Any, prompts: jax.Array, mask: jax.Array, key: jax.Array) -> Generated:
        if beams > 1:
            found = search(params, prompts, mask, beams, length)
            return Generated(found.tokens, found.lengths)
        return generate(params, prompts, mask, key, length, temperature)

    return jax.jit(jax.vmap(one, (0 if per_seed else None, None, None, 0)))


def exposure_of(
    student: LanguageModel,
    student_params: Any,
    teacher: LanguageModel,
    teacher_params: Any,
    asked: tuple[Any, Any],
    taught: Generated,
    keys: jax.Array,
    place: Place,
    *,
    rows: int,
    samples: int,
    per_seed: bool,
) -> dict[str, np.ndarray]:
    """Measures KL of teacher and student on sampled responses of each.

    Args:
        student, student_params: with an axis of seeds.
        teacher, teacher_params: with one where `per_seed`.
        asked: prompts [N, P] and their mask, every one `samples` times in succession.
        taught: the teacher's samples, tokens [S, N, R] and lengths [S, N], of numpy.
        keys: [S] typed, of the student's samples.
        place: puts rows on the mesh.
        rows: prompts that are answered at one time.
        samples: responses to each of E prompts, of which the mean is taken.
        per_seed: whether every seed has a teacher of its own.

    Returns:
        `on_student` and `on_teacher`, numpy [S, E, R] each.
    """
    length = taught.tokens.shape[-1]
    program = _exposure_program(student, teacher, length, per_seed)
    found = []
    for number, start in enumerate(range(0, len(asked[0]), rows)):
        part = slice(start, start + rows)
        own = [np.asarray(leaf)[part] for leaf in asked]
        given = [np.asarray(leaf)[:, part] for leaf in taught]
        count = len(own[0])
        own = [np.pad(leaf, [(0, rows - count), (0, 0)]) for leaf in own]
        given = [_filled(leaf, rows - count) for leaf in given]
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        seeds = place([*given, folded], Layout())
        measured = program(student_params, teacher_params, *place(own, SPLIT), *seeds)
        host = jax.device_get(place(measured, Layout()))
        found.append({name: value[:, :count] for name, value in host.items()})

    def mean(name: str) -> np.ndarray:
        value = np.concatenate([one[name] for one in found], axis=1)  # [S, E samples, R]
        return value.reshape(len(value), -1, samples, length).mean(2)

    return {name: mean(name) for name in ("on_student", "on_teacher")}


def _filled(leaf: np.ndarray, more: int) -> np.ndarray:
    """[S, N, ...] with `more` further rows of zeros."""
    return np.pad(leaf, [(0, 0), (0, more), *[(0, 0)] * (leaf.ndim - 2)])


@lru_cache(maxsize=4)
def _exposure_program(
    student: LanguageModel, teacher: LanguageModel, length: int, per_seed: bool
) -> Any:
    """(student's, teacher's parameters, prompts, mask, teacher's tokens [S, B, R] and lengths
    [S, B], keys [S]) -> divergences [S, B, R]."""
    generate = student.generate
    assert generate is not None

    def one(own: Any, other: Any, prompts: Any, mask: Any, tokens: Any, ends: Any, key: Any) -> Any:
        sampled = generate(own, prompts, mask, key, length, 1.0)
        writers = {"on_student": Responses(*sampled), "on_teacher": Responses(tokens, ends)}
        found = {}
        for name, responses in writers.items():
            empty = jnp.zeros((len(prompts), length), jnp.int32)
            batch = with_responses(Batch(prompts, mask, empty, empty, empty), responses)
            found[name] = token_divergences(student, own, teacher, other, batch)
        return found

    return jax.jit(jax.vmap(one, (0, 0 if per_seed else None, None, None, 0, 0, 0)))
