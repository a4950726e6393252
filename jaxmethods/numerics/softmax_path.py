r"""Softmax regressions with many penalties: one search whose products read the features once.

    min_W  mean_i CE(W z_i, y_i) + lam/2 |W|^2,     z_i = (V^T (x_i - mean), 1),   V g V^T = cov(x)

The last column of W, the bias, has no penalty. Rotated by the eigenvectors V of the covariance, the
Hessian is nearly diagonal, P_cj = mean_i p_ic (1 - p_ic) g_j + lam (Boehning 1992 bounds it by
p (1 - p) <= 1/2), and the decomposition is the same for every penalty. L-BFGS (Liu and Nocedal
1989) starts from 1/P in every step. Logits are linear, so a line search needs no product with the
features: a step costs two, whose columns are all classes of a group of penalties. Groups go from
large penalties to small ones and start where the last one ended. A penalty rests once its own
gradient is small; its group ends with the last.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

MEMORY = 8
"""Pairs of steps and changes of gradient that L-BFGS remembers."""
COLUMNS = 40
"""Classes times penalties of a group: products of as many columns run at full speed on a CPU."""
ROTATED = 2048
"""Features at most that are rotated; the columns of more are only scaled."""
SLOPE = 0.3
"""What of its slope a line search may leave."""
TRIALS = 12
"""Points of a line search at most."""
IDLE = 5
"""Steps in a row without a smaller value or gradient after which rounding is all that is left."""


class Basis(NamedTuple):
    """Features in coordinates that hardly depend on each other."""

    features: jax.Array
    """[N, J] centered, rotated, with a last column of ones."""
    spread: jax.Array
    """[J] their mean squares."""
    rotation: jax.Array | None
    """[D, J - 1]; None: coordinates are features."""
    mean: jax.Array
    """[D]"""


class Problem(NamedTuple):
    """What a group of g penalties minimizes."""

    basis: Basis
    targets: jax.Array
    """[C, 1, N] one-hot labels."""
    share: jax.Array
    """[N] of every row in the mean: 0 of one without a label."""
    penalties: jax.Array
    """[g, J], 0 for the bias."""


class Point(NamedTuple):
    """Weights of a group, and what follows from them."""

    weight: jax.Array
    """[C, g, J]"""
    logits: jax.Array
    """[C, g, N]"""
    value: jax.Array
    """[g]"""
    gradient: jax.Array
    """[C, g, J]"""
    certainty: jax.Array
    """[C, g] means of p (1 - p)."""


class Memory(NamedTuple):
    """The last steps; the newest is at its count modulo `MEMORY`."""

    steps: jax.Array
    """[m, C, g, J]"""
    changes: jax.Array
    """[m, C, g, J] of the gradient."""
    inverse: jax.Array
    """[m, g] one over their products, 0 where there is none."""
    scale: jax.Array
    """[g] of the preconditioner."""


class Search(NamedTuple):
    """A group's search under way."""

    count: jax.Array
    point: Point
    memory: Memory
    best: tuple[jax.Array, jax.Array]
    """[g] smallest value and smallest largest entry of the gradient."""
    idle: jax.Array
    """[g] steps since one of both fell."""
    done: jax.Array
    """[g]"""
    taken: jax.Array
    """[g] steps."""


class Probe(NamedTuple):
    """Linear classifiers, one for each entry of a grid."""

    weight: jax.Array
    """[G, D, C]"""
    bias: jax.Array
    """[G, C], centered."""
    objective: jax.Array
    """[G], at the end."""
    gradient: jax.Array
    """[G] largest entry of the gradient at the end."""
    steps: jax.Array
    """[G]"""


def minimize_path(
    features: jax.Array,
    targets: jax.Array,
    lams: jax.Array,
    tolerance: float,
    most_steps: int,
) -> Probe:
    """The optimum for every penalty.

    Args:
        features: [N, D].
        targets: [N, C] one-hot labels; a row of zeros has none and doesn't count.
        lams: [G] penalties, positive.
        tolerance: of the largest entry of the gradient, in rotated coordinates.
        most_steps: of each; static.

    Returns:
        The classifiers, in the order of `lams`.
    """
    classes, number = targets.shape[1], len(lams)
    groups = -(-number // max(min(COLUMNS // classes, number), 1))
    size = -(-number // groups)
    order = jnp.argsort(-lams)
    padded = jnp.pad(lams[order], (0, groups * size - number), mode="edge")
    there = jnp.sum(targets, axis=1)
    share = there / jnp.maximum(jnp.sum(there), 1)
    basis = make_basis(features, there > 0)
    width = basis.features.shape[1]
    penalized = jnp.arange(width) < width - 1

    def solve(start: jax.Array, own: jax.Array) -> tuple[jax.Array, Probe]:
        problem = Problem(basis, targets.T[:, None], share, own[:, None] * penalized)
        weight, taken = search(problem, start, tolerance, most_steps)
        # Logits have been summed up step by step: what is reported is computed anew.
        last = at(problem, weight, logits_of(problem, weight))
        found = _in_features(basis, last, taken)
        return jnp.repeat(weight[:, -1:], size, axis=1), found

    # Zeros that the compiler can't know. On CPU, XLA's products of features with a constant that is
    # made in the same program read memory that was never written (jax 0.10.2 and 0.12, YNN).
    zeros = 0.0 * (targets.T @ basis.features)
    start = jnp.repeat(zeros[:, None], size, axis=1)
    _, found = jax.lax.scan(solve, start, padded.reshape(groups, size))
    places = jnp.argsort(order)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[places], found)


def make_basis(features: jax.Array, there: jax.Array) -> Basis:
    """Rotates features by the eigenvectors of their covariance.

    Of fewer images than features, the space that the images span is rotated.

    Args:
        features: [N, D].
        there: [N] bool; the coordinates of rows that are not are all 0, that of the bias as well.

    Returns:
        J - 1 coordinates, min(N, D) or D of them.
    """
    number, width = features.shape
    mean = jnp.mean(features, axis=0, where=there[:, None])
    own, rotation = jnp.where(there[:, None], features - mean, 0), None
    count = jnp.maximum(jnp.sum(there, dtype=features.dtype), 1)
    if number < width:
        rotation, upper = jnp.linalg.qr(own.T)
        own = upper.T
    spread = jnp.sum(jnp.square(own), axis=0) / count
    if own.shape[1] <= ROTATED:
        spread, vectors = jnp.linalg.eigh(own.T @ own / count)
        own = own @ vectors
        rotation = vectors if rotation is None else rotation @ vectors
    ones = there[:, None].astype(own.dtype)
    spread = jnp.append(jnp.maximum(spread, 0), 1.0)
    return Basis(jnp.concatenate([own, ones], axis=1), spread, rotation, mean)


def search(
    problem: Problem, start: jax.Array, tolerance: float, most_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Preconditioned L-BFGS for a group of penalties, side by side.

    Args:
        problem: of g penalties.
        start: [C, g, J].
        tolerance: of the largest entry of the gradient.
        most_steps: of each; static.

    Returns:
        Weights [C, g, J] and [g] steps.
    """

    def advance(own: Search) -> Search:
        point = own.point
        scales = preconditioner(problem, point)
        direction = -applied(own.memory, own.count, scales, point.gradient)
        slope = dot(point.gradient, direction)
        moving = ~own.done & (slope < 0)
        along = logits_of(problem, direction)
        length = line_search(problem, point, direction, along, slope, moving)
        step = length[:, None] * direction
        new = at(problem, point.weight + step, point.logits + length[:, None] * along)
        size = largest(new.gradient)
        better = (new.value < own.best[0]) | (size < 0.95 * own.best[1])
        best = (jnp.minimum(new.value, own.best[0]), jnp.minimum(size, own.best[1]))
        idle = jnp.where(better, 0, own.idle + 1)
        done = own.done | ~moving | (size <= tolerance) | (idle >= IDLE)
        memory = remembered(own.memory, own.count, scales, step, new.gradient - point.gradient)
        return Search(own.count + 1, new, memory, best, idle, done, own.taken + moving)

    def unfinished(own: Search) -> jax.Array:
        return (own.count < most_steps) & ~jnp.all(own.done)

    point = at(problem, start, logits_of(problem, start))
    none = jnp.zeros(start.shape[1], jnp.int32)
    pairs = jnp.zeros((MEMORY, *start.shape), start.dtype)
    ones = jnp.ones(start.shape[1], start.dtype)
    memory = Memory(pairs, pairs, jnp.zeros((MEMORY, len(none)), start.dtype), ones)
    size = largest(point.gradient)
    begun = Search(none[0], point, memory, (point.value, size), none, size <= tolerance, none)
    last = jax.lax.while_loop(unfinished, advance, begun)
    return last.point.weight, last.taken


def at(problem: Problem, weight: jax.Array, logits: jax.Array) -> Point:
    """Value and gradient of weights [C, g, J] with their logits [C, g, N]."""
    features, targets = problem.basis.features, problem.targets
    chances, total = softmax(logits)
    fit = jnp.sum(problem.share * (total - jnp.sum(logits * targets, axis=0)), axis=1)
    pull = problem.penalties * weight
    wrong = (chances - targets) * problem.share
    slope = (wrong.reshape(-1, len(features)) @ features).reshape(weight.shape)
    certainty = jnp.sum(problem.share * chances * (1 - chances), axis=2)
    return Point(weight, logits, fit + dot(weight, pull) / 2, slope + pull, certainty)


def softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Probabilities [C, g, N] and the logarithms [g, N] of what divides them."""
    most = jnp.max(logits, axis=0)
    powers = jnp.exp(logits - most)
    total = jnp.sum(powers, axis=0)
    return powers / total, most + jnp.log(total)


def logits_of(problem: Problem, weight: jax.Array) -> jax.Array:
    """Logits [C, g, N] of weights [C, g, J], by one product."""
    flat = weight.reshape(-1, weight.shape[-1])
    return (flat @ problem.basis.features.T).reshape(*weight.shape[:2], -1)


def line_search(
    problem: Problem,
    point: Point,
    direction: jax.Array,
    along: jax.Array,
    slope: jax.Array,
    moving: jax.Array,
) -> jax.Array:
    """Where the slope of the convex value along a direction is small: secants in a bracket.

    Args:
        problem: of g penalties.
        point: where the search begins.
        direction: [C, g, J].
        along: [C, g, N] its logits.
        slope: [g] at the beginning, negative.
        moving: [g] whose search it is.

    Returns:
        [g] lengths, 0 where nothing moves.
    """
    pull = dot(point.weight, problem.penalties * direction)
    stretch = dot(direction, problem.penalties * direction)

    def slope_at(length: jax.Array) -> jax.Array:
        chances, _ = softmax(point.logits + length[:, None] * along)
        fit = jnp.sum(problem.share * jnp.sum((chances - problem.targets) * along, axis=0), axis=1)
        return fit + pull + length * stretch

    def narrow(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        trial, length, low, low_slope, high, high_slope, found = carry
        now = slope_at(length)
        found = found | (jnp.abs(now) <= SLOPE * jnp.abs(slope))
        over = now > 0
        # Without an upper end, the line through the last two slopes is followed beyond.
        rise = jnp.where(now > low_slope, now - low_slope, 1)
        ahead = jnp.clip(length - now * (length - low) / rise, 1.5 * length, 10 * length)
        ends = (jnp.where(over, low, length), jnp.where(over, length, high))
        slopes = (jnp.where(over, low_slope, now), jnp.where(over, now, high_slope))
        width = ends[1] - ends[0]
        between = ends[0] - slopes[0] * width / (slopes[1] - slopes[0])
        between = jnp.clip(between, ends[0] + 0.05 * width, ends[1] - 0.05 * width)
        following = jnp.where(jnp.isinf(ends[1]), ahead, between)
        length = jnp.where(found, length, following)
        return trial + 1, length, ends[0], slopes[0], ends[1], slopes[1], found

    zeros = jnp.zeros_like(slope)
    carry = (jnp.zeros((), jnp.int32), zeros + 1, zeros, slope, zeros + jnp.inf, zeros, ~moving)
    carry = jax.lax.while_loop(lambda own: (own[0] < TRIALS) & ~jnp.all(own[-1]), narrow, carry)
    return jnp.where(moving, carry[1], 0)


def preconditioner(problem: Problem, point: Point) -> jax.Array:
    """One over the diagonal of the Hessian [C, g, J], as if images were as uncertain on average."""
    smallest = jnp.finfo(point.weight.dtype).eps
    curvature = jnp.maximum(point.certainty, smallest)[..., None] * problem.basis.spread
    return 1 / (curvature + problem.penalties + smallest**2)


def applied(memory: Memory, count: jax.Array, scales: jax.Array, gradient: jax.Array) -> jax.Array:
    """L-BFGS's inverse Hessian times a gradient, by its two loops.

    Args:
        memory: the last steps.
        count: [] of steps so far.
        scales: [C, g, J], the preconditioner.
        gradient: [C, g, J].

    Returns:
        [C, g, J].
    """
    places = [(count - 1 - back) % MEMORY for back in range(MEMORY)]
    parts = []
    for place in places:
        part = memory.inverse[place] * dot(memory.steps[place], gradient)
        gradient = gradient - part[:, None] * memory.changes[place]
        parts.append(part)
    moved = gradient * scales * memory.scale[:, None]
    for place, part in reversed(list(zip(places, parts, strict=True))):
        back = memory.inverse[place] * dot(memory.changes[place], moved)
        moved = moved + (part - back)[:, None] * memory.steps[place]
    return moved


def remembered(
    memory: Memory, count: jax.Array, scales: jax.Array, step: jax.Array, change: jax.Array
) -> Memory:
    """The memory with a new step.

    Args:
        memory: the last steps.
        count: [] of steps so far.
        scales: [C, g, J], the preconditioner.
        step: [C, g, J].
        change: [C, g, J], that of the gradient which the step made.

    Returns:
        The memory; the step stands in place of the oldest.
    """
    product, size = dot(step, change), dot(change, scales * change)
    known = (product > 0) & (size > 0)
    inverse = jnp.where(known, 1 / jnp.where(known, product, 1), 0)
    scale = jnp.where(known, product / jnp.where(known, size, 1), memory.scale)
    place = count % MEMORY
    return Memory(
        memory.steps.at[place].set(step),
        memory.changes.at[place].set(change),
        memory.inverse.at[place].set(inverse),
        scale,
    )


def dot(first: jax.Array, second: jax.Array) -> jax.Array:
    """Products [g] of [C, g, J] and [C, g, J]."""
    return jnp.einsum("cgj,cgj->g", first, second)


def largest(gradient: jax.Array) -> jax.Array:
    """Largest entries [g] of [C, g, J]."""
    return jnp.max(jnp.abs(gradient), axis=(0, 2))


def _in_features(basis: Basis, point: Point, taken: jax.Array) -> Probe:
    """A group's classifiers in the coordinates of the features, the bias centered."""
    parts = jnp.stack([point.weight, point.gradient])[..., :-1]  # [2, C, g, J - 1]
    if basis.rotation is not None:
        parts = jnp.einsum("dj,pcgj->pcgd", basis.rotation, parts)
    weight = jnp.moveaxis(parts[0], 0, 2)  # [g, D, C]
    bias = point.weight[..., -1].T - jnp.einsum("d,gdc->gc", basis.mean, weight)
    bias = bias - jnp.mean(bias, axis=1, keepdims=True)
    slopes = point.gradient[..., -1:]  # the biases'
    gradient = jnp.concatenate([parts[1] + slopes * basis.mean, slopes], axis=2)
    return Probe(weight, bias, point.value, largest(gradient), taken)
