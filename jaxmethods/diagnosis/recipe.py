"""`method: interpret` on the command line: a report on a model folder or on a finished run.

A run's recipe says itself what it trained and on what data (`stages.Diagnosable`); everything else
is a folder of a language model, and a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmethods.config import ConfigError
from jaxmethods.data.offline import DataError, read_npz
from jaxmethods.interpret.config import ReportRun as Run
from jaxmethods.interpret.losses import cross_entropy, squared_error
from jaxmethods.interpret.problem import Data, Problem, make_problem
from jaxmethods.interpret.recipes import language
from jaxmethods.interpret.recipes.rows import STAGE, Subject, rows_stage, write_report
from jaxmethods.layout import path_name
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.runs import load_run
from jaxmethods.stages import Diagnosable, Recipe, Results

__all__ = ["Run", "recipe"]

EXAMPLES = 256
"""Examples of each set of a run, where the config doesn't say."""
LOSSES = {"cross_entropy": cross_entropy, "squared_error": squared_error}


def recipe(run: Run) -> Recipe:
    """One stage, a part a row.

    Raises:
        ConfigError: a run that trains nothing to be diagnosed, or a seed that it doesn't have.
        RunFolderError: a run that has not come to its end.
        DataError: arrays that aren't those of the run's model.
        UserError: a model folder or a text that cannot be used.
    """
    if not RunFolder(run.model).holds_run():
        return language.recipe(run)
    try:
        found = load_run(run.model).diagnosable(run.of_seed)
    except ValueError as error:
        raise ConfigError(f"model {run.model}: {error}") from error
    sets = own_data(found) if run.data is None else read_arrays(run, found)
    own, held_out = (problem_of(run, found, one) for one in sets)

    def subjects(results: Results) -> list[Subject]:
        del results
        return [Subject(own, held_out)]

    title = f"{found.title[0].upper()}{found.title[1:]}, from {run.model}"
    headline = tuple(f"{STAGE}/{name}" for name in ("train_loss", "gap", "largest_eigenvalue"))
    stage = rows_stage(subjects, run.seed, run.level)
    return Recipe([stage], partial(write_report, title=title), (STAGE,), headline)


def own_data(found: Diagnosable) -> tuple[Data, Data]:
    """What the run was trained on, and what it held out."""
    return Data(*found.data), Data(*found.held_out)


def read_arrays(run: Run, found: Diagnosable) -> tuple[Data, Data]:
    """The arrays of the files that the config names, in place of the run's own.

    Args:
        run: with `data`, and perhaps `held_out`.
        found: the model, whose own data say what arrays it takes.

    Returns:
        Two sets of examples; with one file, its halves.

    Raises:
        FileError, DataError: a file that cannot be read, that has other arrays, or fewer than two
            examples.
    """
    assert run.data is not None
    whole = _arrays(run.data, found)
    if run.held_out is not None:
        return whole, _arrays(run.held_out, found)
    middle = len(jax.tree.leaves(whole)[0]) // 2
    first = jax.tree.map(lambda leaf: leaf[:middle], whole)
    return first, jax.tree.map(lambda leaf: leaf[middle:], whole)


def _arrays(path: Path, found: Diagnosable) -> Data:
    arrays: Mapping[str, Any] = read_npz(path)
    inputs, targets = found.data
    like = {"inputs": inputs, "targets": targets}
    named = {
        path_name(key).replace("/", "."): leaf
        for key, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    shown = ", ".join(
        f"{name} {leaf.dtype.name}[N{''.join(f', {size}' for size in leaf.shape[1:])}]"
        for name, leaf in named.items()
    )
    lengths = {len(arrays[name]) for name in named if name in arrays and arrays[name].ndim}
    for name, leaf in named.items():
        own = arrays.get(name)
        if own is None or own.shape[1:] != leaf.shape[1:] or own.dtype.kind != leaf.dtype.kind:
            came = "none" if own is None else f"{own.dtype.name}{list(own.shape)}"
            raise DataError(f"data {path}: expected {shown}; got {name}: {came}")
    if len(lengths) != 1 or min(lengths) < 2:
        raise DataError(
            f"data {path}: expected arrays of one length of at least 2, got {sorted(lengths)}"
        )
    leaves = [np.asarray(arrays[name], leaf.dtype) for name, leaf in named.items()]
    read = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return Data(read["inputs"], read["targets"])


def problem_of(run: Run, found: Diagnosable, data: Data) -> Problem:
    """A set of examples and what was trained, as diagnostics take them.

    Args:
        run: how many examples, and how many of them are in memory together.
        found: the model.
        data: all examples of the set.

    Returns:
        The problem; microbatched where not all examples are in memory together.
    """
    count = min(run.examples or EXAMPLES, len(jax.tree.leaves(data)[0]))
    size = min(run.batch or count, count)
    whole = count // size * size  # [N, ...] -> [K, B, ...]
    parts = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, size, *leaf.shape[1:]), data)
    if whole == size:
        parts = jax.tree.map(lambda leaf: leaf[0], parts)
    return make_problem(found.apply, LOSSES[found.loss], found.params, parts, whole > size)
