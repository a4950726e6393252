"""What the teacher does once, before students begin: answers prompts, reads gold responses."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxmethods.kid.config import DistillRun
from jaxmethods.kid.loss import Batch, states_of
from jaxmethods.kid.model import LanguageModel
from jaxmethods.kid.recipes.answering import SPLIT, answer
from jaxmethods.kid.recipes.learning import learns_teacher, teacher_params
from jaxmethods.kid.recipes.material import Material
from jaxmethods.kid.recipes.models import Models
from jaxmethods.kid.responses import Responses
from jaxmethods.layout import Layout
from jaxmethods.models.decoder.network import RULES
from jaxmethods.numerics.keys import named
from jaxmethods.stages import Arrays, Compute, Part, Place, Results

LOG = logging.getLogger(__name__)


def responses_stage(run: DistillRun, models: Models, material: Material) -> Compute:
    """The teacher's responses to all training prompts."""

    def parts(results: Results, place: Place) -> list[Part]:
        train = material.texts(results).train
        length = train.responses.shape[1]

        def compute(start: int) -> Arrays:
            rows = slice(start, start + run.evaluation.rows)
            seeds = run.seeds if learns_teacher(run) else 1
            keys = jax.vmap(lambda s: named(jax.random.key(s), f"teacher responses {start}"))(
                jnp.arange(seeds) + run.seed
            )
            params = teacher_params(run, models, results)
            found = answer(
                models.teacher.language,
                params if learns_teacher(run) else place(params, Layout(batch=RULES)),
                (train.prompts[rows], train.prompt_mask[rows]),
                keys,
                place,
                rows=run.evaluation.rows,
                length=length,
                temperature=run.teacher.temperature,
                per_seed=learns_teacher(run),
            )
            return found._asdict()

        starts = range(0, len(train.prompts), run.evaluation.rows)
        return [Part(f"{start:07d}", partial(compute, start)) for start in starts]

    def finish(found: Sequence[Arrays]) -> Responses:
        arrays: list[Any] = [
            np.concatenate([part[name] for part in found], 1) for name in ("tokens", "lengths")
        ]
        own = Responses(*arrays)
        return own if learns_teacher(run) else jax.tree.map(lambda leaf: leaf[0], own)

    return Compute("teacher_responses", parts, finish)


def states_stage(run: DistillRun, models: Models, material: Material) -> Compute:
    """The teacher's states on all gold responses, which its logits are made of.

    They take N R D numbers on disk, logits would take N R V: with the paper's models 30 to 150
    times as many. The head is applied to them in every step, as without them.
    """
    kept = {"float32": np.float32, "bfloat16": np.uint16}.get(run.teacher.cache, np.float32)

    def parts(results: Results, place: Place) -> list[Part]:
        train = material.texts(results).train
        size = np.prod(train.responses.shape) * models.teacher.config.width
        _announce(int(size) * np.dtype(kept).itemsize * (run.seeds if learns_teacher(run) else 1))
        program = _states_program(models.teacher.language, learns_teacher(run))

        def compute(start: int) -> Arrays:
            rows = slice(start, start + run.evaluation.rows)
            params = teacher_params(run, models, results)
            if not learns_teacher(run):
                params = place(params, Layout(batch=RULES))
            own = jax.tree.map(lambda leaf: padded(leaf[rows], run.evaluation.rows), train)
            states = program(params, place(own, SPLIT))[:, : len(train.prompts[rows])]
            states = np.asarray(jax.device_get(place(states, Layout())), np.float32)
            if kept is np.uint16:
                states = states.astype(ml_dtypes.bfloat16).view(np.uint16)
            return {"states": states}

        starts = range(0, len(train.prompts), run.evaluation.rows)
        return [Part(f"{start:07d}", partial(compute, start)) for start in starts]

    def finish(found: Sequence[Arrays]) -> np.ndarray:
        states = np.concatenate([part["states"] for part in found], 1)
        states = states.view(ml_dtypes.bfloat16) if kept is np.uint16 else states
        return states if learns_teacher(run) else states[0]

    return Compute("teacher_states", parts, finish)


def padded(leaf: Any, rows: int) -> np.ndarray:
    """An array whose last rows are zeros, so that all parts are one program's."""
    leaf = np.asarray(leaf)
    return np.pad(leaf, [(0, rows - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)])


@lru_cache(maxsize=4)
def _states_program(language: LanguageModel, per_seed: bool) -> Any:
    """(teacher, batch) -> states [S, B, R, D]."""

    def states(params: Any, batch: Batch) -> jax.Array:
        seen = jnp.ones(batch.responses.shape, bool)
        return states_of(language, params, batch)(batch.responses, seen)

    if per_seed:
        return jax.jit(jax.vmap(states, (0, None)))
    return jax.jit(lambda params, batch: states(params, batch)[None])


def _announce(size: int) -> None:
    """Says how much will be kept. Raises `ValueError` where the disk has no room for it."""
    LOG.warning("teacher.cache: keeps %.1f MB of the teacher's states on disk", size / 1e6)
    free = shutil.disk_usage(".").free
    if size > free:
        raise ValueError(
            f"teacher.cache: {size / 1e9:.1f} GB of states are more than the {free / 1e9:.1f} GB "
            "that are free; use bfloat16, or none"
        )
