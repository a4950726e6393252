"""What a run is made of: named stages whose results are handed on by name.

    def recipe(run: Run) -> Recipe:
        base = Train("base", pretrainer(...), 500, lambda results: images)
        features = Compute("features", lambda results, place: [...])  # e.g. of results["base"]
        probe = Train("probe", classifier(...), 100, lambda results: results["features"])
        return Recipe([base, features, probe], report=draw_table, headline=("probe/accuracy",))

A stage trains, computes or writes files. Its result is computed once, kept in the run folder, and
found by later stages under the stage's name, so that a stage that is inserted or moved changes no
other's input.
Results of training have a leading axis of seeds. `training.runner.run` runs a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax
from jax.sharding import Mesh

from jaxmethods.layout import Layout
from jaxmethods.method import Batch, Method, Metrics, State

Results: TypeAlias = Mapping[str, Any]
"""Stage name -> what the stage found: a pytree of arrays."""
Arrays: TypeAlias = Mapping[str, Any]
"""Flat names to arrays: what is kept of a part."""


def no_data(results: Results) -> Batch:
    """The data source of a stage that needs none: a simulator."""
    del results


class Evaluation(NamedTuple):
    """How a stage's state is judged."""

    measure: Callable[[State, Batch, jax.Array], Any]
    """(state, batch, typed key) of one seed -> measures: play, generate, encode. Pure; jitted,
    vmapped over seeds and run on the mesh. Without `judge`, the measures are the metrics."""
    judge: Callable[[Any], Mapping[str, Any]] | None = None
    """Measures of all seeds, [seeds, ...] -> metrics [seeds]: what only a host can say (a database,
    a word error rate, a simulator outside of JAX). Every process judges its own copy."""
    score: str | None = None
    """The metric, higher is better, that picks the best checkpoint."""
    along: Sequence[str] = ()
    """Metrics that are measured along the way only, because a later stage measures what they come
    to. They are points of the learning curve ("curve/NAME" in `metrics.jsonl`), not of the result,
    so that no quantity has two values there."""


class Train(NamedTuple):
    """A stage that trains: a method, what it is fed, how long it runs and how it is judged."""

    name: str
    """Unique within the recipe."""
    method: Method
    steps: int
    """How many times `method.step` is called."""
    data: Callable[[Results], Batch] = no_data
    """Results of earlier stages -> batch. Called at every start: what costs is a stage."""
    result: Callable[[State, Batch], Any] | None = None
    """(last state, batch) of one seed -> what is handed on; pure, jitted and vmapped over seeds.
    None: the state."""
    evaluation: Evaluation | None = None
    layout: Layout = Layout()
    main: bool = False
    """The one stage that begins with the run's own random keys, as a run of this stage alone does.
    Those of other stages are derived from their names, wherever they stand in the recipe."""


class Part(NamedTuple):
    """One piece of a computation, kept so that a run that is stopped can go on."""

    name: str
    """Says what it is the result of: equal names, equal arrays. Becomes a file's name."""
    compute: Callable[[], Arrays]
    """() -> arrays, of the host or of the mesh."""


class Place(Protocol):
    """Puts what a part computes with on the mesh of the run."""

    @property
    def mesh(self) -> Mesh:
        """The mesh of all devices of the run."""
        ...

    def __call__(self, tree: Any, layout: Layout) -> Any:
        """Arrays, the same in every process, split as the layout says of a batch."""
        ...


class Compute(NamedTuple):
    """A stage with nothing to train: features, scores, generated data, a table."""

    name: str
    """Unique within the recipe."""
    parts: Callable[[Results, Place], Sequence[Part]]
    """(results of earlier stages, place) -> what is to be computed, in order. Called at every
    start: what costs is in the parts."""
    finish: Callable[[Sequence[Arrays]], Any]
    """The parts' arrays [of the host], in their order -> the stage's result."""
    metrics: Callable[[Any], Mapping[str, Any]] | None = None
    """The result -> named numbers, each one or [seeds], for the run's record."""


Advance: TypeAlias = Callable[[int, int], None]
"""(done so far, all there is to do): bytes, rows, whatever is counted."""


class Write(NamedTuple):
    """A stage whose result is a folder of files: a merged model, a generated dataset."""

    name: str
    """Unique within the recipe; the folder's name in the run folder."""
    write: Callable[[Results, Path, Advance], Mapping[str, Any]]
    """(results of earlier stages, a path where nothing is yet, advance) -> named numbers. Makes the
    folder, which gets its name when it is whole; later stages find its path. One process writes."""


Stage: TypeAlias = Train | Compute | Write


class Diagnosable(NamedTuple):
    """What a run trained, beside data, in the form in which any model can be diagnosed."""

    title: str
    """What it is, in a few words."""
    apply: Callable[[Any, Any], jax.Array]
    """(params, inputs [N, ...]) -> outputs [N, ...], pure; examples don't see each other."""
    params: Any
    loss: Literal["cross_entropy", "squared_error"]
    """Cross entropy is that of logits [N, ..., C] and integer targets [N, ...], of which negative
    ones don't count; squared error that of outputs and targets of one shape."""
    data: tuple[Any, Any]
    """Inputs and targets that it was trained on, leaves [N, ...]."""
    held_out: tuple[Any, Any]
    """The same of examples that it was not trained on."""


class Recipe(NamedTuple):
    """Everything that a run does."""

    stages: Sequence[Stage]
    """In order."""
    report: Callable[[Results, Path], None] | None = None
    """(results of the stages in `reads`, folder) -> figures, tables and exported files, the one
    place where they are written. They take their places in the run folder together. A file
    `table.md` is shown in the report, figures belong into `figures/`."""
    reads: Sequence[str] = ()
    """Stages whose results the report is given: they are gathered on one host."""
    headline: Sequence[str] = ()
    """The metrics that are the run's result, "stage/name", the most important first."""
    ready: Callable[[Results, int], Callable[..., Any]] | None = None
    """(results, index of a seed) -> what was trained, as a function that others call. Its docstring
    says of what; None: there is nothing to call, results are what counts."""
    diagnosable: Callable[[Results, int], Diagnosable] | None = None
    """(results, index of a seed) -> the model that was trained, beside data, for
    `method: interpret`; None: there is none."""


def check_recipe(recipe: Recipe) -> None:
    """Raises `ValueError` for stages of the same name and for a headline of no stage."""
    names = [stage.name for stage in recipe.stages]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"stages: expected unique names, got {name!r} more than once")
    if sum(isinstance(stage, Train) and stage.main for stage in recipe.stages) > 1:
        raise ValueError("stages: expected at most one main stage")
    for name in recipe.reads:
        if name not in names:
            raise ValueError(f"reads: {name!r} is none of the stages {names}")
    for metric in recipe.headline:
        if metric.split("/", 1)[0] not in names:
            raise ValueError(f"headline: {metric!r} names none of the stages {names}")


__all__ = [
    "Advance",
    "Arrays",
    "Compute",
    "Diagnosable",
    "Evaluation",
    "Metrics",
    "Part",
    "Place",
    "Recipe",
    "Results",
    "Stage",
    "Train",
    "Write",
    "check_recipe",
    "no_data",
]
