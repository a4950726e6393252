"""What a report draws: spectrum, kernel, landscape, margins, calibration, collapse.

A picture is computed as a part of the report's stage, like a row, and drawn from what was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.interpret import programs
from jaxmethods.interpret.curvature import slq
from jaxmethods.interpret.honesty import calibration
from jaxmethods.interpret.losses import IGNORED
from jaxmethods.interpret.measures import Kind, kernel, kinds
from jaxmethods.interpret.problem import Problem, one_batch
from jaxmethods.interpret.programs import Effort
from jaxmethods.interpret.representation import neural_collapse
from jaxmethods.plotting import INK, new_figure, open_frame, write_png

Arrays = Mapping[str, Any]
SOFT = "#8fa3b5"
"""The color of what a figure is compared with."""
REACH, LINE, GRID = 1.0, 45, 15
"""How far directions go, in lengths of the weights; points of a line, and of a plane's side. A
plane is a whole number of lines, so that one program computes both."""
MOST = 4096
"""Margins that are kept."""
MOST_CLASSES = 40
"""Classes whose angles a picture can show."""


class Picture(NamedTuple):
    """One figure of the report."""

    file: str
    compute: Callable[[Problem, Problem, jax.Array, Effort], Arrays]
    """(problem, held-out problem, key, effort) -> arrays that are kept."""
    draw: Callable[[Path, Arrays], None]
    needs: Kind = "anything"


def pictures_of(problem: Problem) -> dict[str, Picture]:
    """The pictures that a problem has."""
    found = kinds(problem)
    return {name: own for name, own in PICTURES.items() if own.needs in found}


def _spectrum(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Arrays:
    del held
    found = programs.spectrum(problem, key, effort)
    return {"nodes": found.nodes, "weights": found.weights}


def _draw_spectrum(path: Path, arrays: Arrays) -> None:
    nodes, weights = np.asarray(arrays["nodes"]), np.asarray(arrays["weights"])
    one, unknown = jnp.asarray(1.0), jnp.zeros_like(nodes)
    own = slq.Spectrum(jnp.asarray(nodes), jnp.asarray(weights), one, unknown)
    low, high = nodes[weights > 0].min(), nodes[weights > 0].max()
    room = 0.05 * max(high - low, 1e-12)
    grid = np.linspace(low - room, high + room, 800, dtype=nodes.dtype)
    found = jax.jit(slq.density)(own, grid, 1e-4)
    figure = new_figure(6, 3.2)
    panel = figure.subplots()
    largest = float(np.max(found.value))
    panel.fill_between(grid, 1e-7 * largest, np.maximum(found.value, 1e-7 * largest), color=INK)
    panel.set_yscale("log")
    panel.set_ylim(1e-6 * largest, 2 * largest)
    panel.axvline(0, color=SOFT, linewidth=0.8, zorder=0)
    panel.set_xlabel("eigenvalue of the Hessian")
    panel.set_ylabel("density")
    open_frame(panel)
    write_png(figure, path)


def _kernel(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Arrays:
    del held, key
    matrix = np.asarray(kernel(problem, effort))
    return {"matrix": matrix, "values": np.linalg.eigvalsh(matrix)[::-1]}


def _draw_kernel(path: Path, arrays: Arrays) -> None:
    values, matrix = np.asarray(arrays["values"]), np.asarray(arrays["matrix"])
    length = np.sqrt(np.maximum(np.diag(matrix), 1e-30))
    figure = new_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    shown = left.imshow(matrix / length[:, None] / length, cmap="RdBu_r", vmin=-1, vmax=1)
    left.set_title("cosines of the examples' tangents", fontsize=9)
    left.set_xlabel("example")
    left.set_ylabel("example")
    figure.colorbar(shown, ax=left, shrink=0.8)
    floor = values[0] * 1e-7
    right.semilogy(np.arange(1, len(values) + 1), np.maximum(values, floor), "o-", color=INK, ms=3)
    right.set_ylim(max(floor, values[-1] / 2), None)
    right.set_xlabel("number")
    right.set_ylabel("eigenvalue of the kernel")
    open_frame(right)
    write_png(figure, path)


def _landscape(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Arrays:
    del effort
    line, axis = (np.linspace(-REACH, REACH, n, dtype=np.float32) for n in (LINE, GRID))
    along = np.stack([line, np.zeros_like(line)], axis=1)
    plane = np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1)
    blocks = plane.reshape(-1, LINE, 2)  # [G, G, 2] -> [K, L, 2]: of the line's shape
    found = [programs.landscape(problem, key, jnp.asarray(block)) for block in blocks]
    return {
        "line": line,
        "train": programs.landscape(problem, key, jnp.asarray(along)),
        "held_out": programs.landscape(held, key, jnp.asarray(along)),
        "axis": axis,
        "plane": np.concatenate(found).reshape(GRID, GRID),
    }


def _draw_landscape(path: Path, arrays: Arrays) -> None:
    figure = new_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    for name, color in (("held_out", SOFT), ("train", INK)):
        left.plot(arrays["line"], arrays[name], color=color, label=name.replace("_", " "))
    left.set_xlabel("along a random direction, in lengths of the weights")
    left.set_ylabel("loss")
    left.legend(frameon=False)
    open_frame(left)
    plane = np.asarray(arrays["plane"])
    levels = np.quantile(plane, np.linspace(0, 1, 12))
    if np.all(np.diff(levels) > 0):
        drawn = right.contourf(arrays["axis"], arrays["axis"], plane, levels, cmap="Blues_r")
        figure.colorbar(drawn, ax=right, format="%.3g")
    right.plot(0, 0, "o", color="#d1495b", ms=4)
    right.set_title("loss on training data in a random plane", fontsize=9)
    right.set_aspect("equal")
    write_png(figure, path)


def _margins(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Arrays:
    del key, effort
    found = {"train": programs.predicted(problem), "held_out": programs.predicted(held)}
    return {
        name: jnp.where(own.weight > 0, own.margin, jnp.nan).reshape(-1)[:MOST]
        for name, own in found.items()
    }


def _draw_margins(path: Path, arrays: Arrays) -> None:
    figure = new_figure(6, 3.2)
    panel = figure.subplots()
    kept = {name: np.asarray(arrays[name]) for name in ("held_out", "train")}
    kept = {name: own[np.isfinite(own)] for name, own in kept.items()}
    for (name, own), color in zip(kept.items(), (SOFT, INK), strict=True):
        share = (np.arange(len(own)) + 1) / len(own)
        panel.step(np.sort(own), share, color=color, label=name.replace("_", " "))
    panel.axvline(0, color=SOFT, linewidth=0.8, zorder=0)
    panel.set_xlabel("margin: own logit minus the largest other one")
    panel.set_ylabel("share with at most that margin")
    panel.set_ylim(0, 1.02)
    panel.legend(frameon=False)
    open_frame(panel)
    write_png(figure, path)


def _calibration(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Arrays:
    del problem, key, effort
    found = programs.predicted(held)
    bins = calibration.binned(found.confidence, found.right, found.weight, 10)
    return {name: getattr(bins, name) for name in ("confidence", "accuracy", "count")}


def _draw_calibration(path: Path, arrays: Arrays) -> None:
    count = np.asarray(arrays["count"])
    figure = new_figure(4.6, 4)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8)
    area = 12 + 300 * count / count.sum()
    there = count > 0
    confidence, accuracy = (np.asarray(arrays[n])[there] for n in ("confidence", "accuracy"))
    panel.plot(confidence, accuracy, color=INK, linewidth=1)
    panel.scatter(confidence, accuracy, s=area[there], color=INK)
    panel.set_xlim(0, 1.03)
    panel.set_ylim(0, 1.03)
    panel.set_xlabel("confidence (area: share of the held-out targets)")
    panel.set_ylabel("accuracy")
    panel.set_aspect("equal")
    open_frame(panel)
    write_png(figure, path)


def _collapse(problem: Problem, held: Problem, key: jax.Array, effort: Effort) -> Arrays:
    del held, key, effort
    logits, data = programs.outputs(problem), one_batch(problem).data
    # What doesn't count is of no class.
    targets = jnp.where(problem.weights(data, logits.dtype) > 0, data.targets, IGNORED)
    found = neural_collapse.neural_collapse(logits, targets, logits.shape[1])
    offsets = found.class_means - found.global_mean
    length = jnp.linalg.norm(offsets, axis=1)
    numbers = ("nc1", "nc2_norms", "nc2_angles")
    return {"cosines": offsets @ offsets.T / length[:, None] / length} | {
        name: getattr(found, name) for name in numbers
    }


def _draw_collapse(path: Path, arrays: Arrays) -> None:
    cosines = np.asarray(arrays["cosines"])
    present = np.flatnonzero(np.isfinite(np.diagonal(cosines)))  # a class without examples has none
    cosines, classes = cosines[np.ix_(present, present)], len(present)
    figure = new_figure(5.2, 4.2)
    panel = figure.subplots()
    shown = panel.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(shown, ax=panel, shrink=0.8)
    numbers = ", ".join(
        f"{title} {float(arrays[name]):.2g}"
        for name, title in (("nc1", "NC1"), ("nc2_norms", "norms"), ("nc2_angles", "angles"))
        if np.isfinite(arrays[name])
    )
    panel.set_title(
        f"cosines of class means of logits; collapsed: {-1 / max(classes - 1, 1):.2f}\n{numbers}",
        fontsize=9,
    )
    ticks = np.arange(0, classes, max(classes // 10, 1))
    panel.set(xlabel="class", ylabel="class")
    panel.set_xticks(ticks, present[ticks])
    panel.set_yticks(ticks, present[ticks])
    write_png(figure, path)


PICTURES: Mapping[str, Picture] = {
    "spectrum": Picture("spectrum_of_the_hessian", _spectrum, _draw_spectrum),
    "kernel": Picture("tangent_kernel", _kernel, _draw_kernel),
    "landscape": Picture("loss_landscape", _landscape, _draw_landscape),
    "margins": Picture("margins", _margins, _draw_margins, "logits"),
    "reliability": Picture("reliability", _calibration, _draw_calibration, "logits"),
    "collapse": Picture("collapse_of_classes", _collapse, _draw_collapse, "classes"),
}
"""Name -> picture; a kernel of models with many outputs is that of their losses."""
