"""Gradients through inner optimizations: time and memory of every mode of `bilevel.solve`.

The problem is that of Offline Behavior Distillation at its published size: 256 synthetic pairs of
states and actions are the outer variable, 100 steps of SGD train a stochastic policy on them, 2560
other pairs judge it. Beside it: the same gradient in PyTorch (torch_bilevel.py), and the same work
for other numbers of inner steps and for many problems at once.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.harness import (
    Row,
    Settings,
    Work,
    powers,
    prepare_jax,
    prepare_torch,
    time_in_turns,
)
from jaxmethods import bilevel
from jaxmethods.bilevel import Implicit, Mixed, Mode, Reverse, Truncated

RATE = 0.1
STEPS = 100
SWEEP = (20, 50, 100, 200, 500, 1000)
MODES: dict[str, Mode] = {
    "reverse": Reverse(),
    "reverse, step": Reverse("step"),
    "reverse, sqrt": Reverse("sqrt"),
    "mixed": Mixed(),
    "mixed, saved": Mixed(save=True),
    "truncated, 20": Truncated(20),
    "implicit, 20": Implicit(iterations=20, tolerance=0.0, damping=1.0),
}
"""By the name in the rows. 100 steps of SGD are not stationary: the implicit gradient's time is
measured, its value means nothing here."""


class Sizes(NamedTuple):
    """Of the problem; the defaults are the published ones for Hopper."""

    states: int = 11
    actions: int = 3
    width: int = 256
    hidden: int = 3
    pairs: int = 256
    judged: int = 2560


class Pairs(NamedTuple):
    """States [N, S] and actions [N, A]."""

    states: jax.Array
    actions: jax.Array


class Inputs(NamedTuple):
    """The arguments of `hypergradient`."""

    pairs: Pairs
    """The outer variable."""
    params: dict[str, Any]
    """Initial policy."""
    noise: jax.Array
    """[T, N, A] of the inner steps."""
    judges: Pairs
    judging_noise: jax.Array
    """[B, A]."""


def rows(settings: Settings) -> Iterator[Row]:
    """All modes at the published size, then against the inner steps, then many problems."""
    yield from modes(settings)
    yield from sweep(settings)
    yield from problems(settings)


def modes(settings: Settings, sizes: Sizes = Sizes(), steps: int = STEPS) -> Iterator[Row]:  # noqa: B008
    """Every mode and PyTorch's two ways to do it, timed in turns."""
    inputs = draw(jax.random.key(0), sizes, steps)
    works = {name: prepare_jax(hypergradient(mode), *inputs) for name, mode in MODES.items()}
    theirs = {f"torch, {way}": torch_work(inputs, way, settings) for way in ("reverse", "mixed")}
    works |= {name: work for name, work in theirs.items() if work}
    timings = dict(zip(works, time_in_turns(list(works.values()), settings), strict=True))
    others = {name: timings.pop(name) for name in theirs if name in timings}
    fastest = min(others, key=lambda name: others[name].median, default=None)
    for name, timing in timings.items():
        # Truncated and implicit gradients are less work than PyTorch's whole one.
        compared = fastest if name in EXACT else None
        yield Row(
            name="bilevel/modes",
            sizes={"mode": name, "steps": steps, "cores": settings.cores},
            work=steps,
            unit="inner steps/s",
            ours=timing,
            torch=others[compared] if compared else None,
            note=describe_memory(timing) + (f", {compared}" if compared else ""),
        )


def sweep(settings: Settings) -> Iterator[Row]:
    """Exact modes against the number of inner steps, until a round takes too long."""
    for steps in SWEEP:
        inputs = draw(jax.random.key(0), Sizes(), steps)
        works = [prepare_jax(hypergradient(MODES[name]), *inputs) for name in EXACT]
        timings = time_in_turns(works, settings)
        for name, timing in zip(EXACT, timings, strict=True):
            yield Row(
                name="bilevel/steps",
                sizes={"mode": name, "steps": steps, "cores": settings.cores},
                work=steps,
                unit="inner steps/s",
                ours=timing,
                note=describe_memory(timing),
            )
        # The next number of steps takes two to three times as long, four times over.
        if 10 * sum(timing.median for timing in timings) > 5 * settings.seconds:
            break


def problems(settings: Settings, steps: int = STEPS) -> Iterator[Row]:
    """Mixed mode on many problems at once: other pairs, other initial policies, other noise."""
    gradient = hypergradient(Mixed())
    alone = None
    for number in powers(1, 64):
        keys = jax.random.split(jax.random.key(0), number)
        inputs = jax.vmap(lambda key: draw(key, Sizes(), steps))(keys)
        (timing,) = time_in_turns([prepare_jax(jax.vmap(gradient), *inputs)], settings)
        alone = alone or timing.median
        gain = number * alone / timing.median
        yield Row(
            name="bilevel/problems",
            sizes={"problems": number, "steps": steps, "cores": settings.cores},
            work=number * steps,
            unit="inner steps/s",
            ours=timing,
            note=f"{describe_memory(timing)}, {gain:.2f}x the rate of one",
        )
        # A warm-up and three repeats of the next, four times as large.
        if 16 * timing.median > settings.seconds:
            break


EXACT = ("reverse", "reverse, step", "reverse, sqrt", "mixed", "mixed, saved")


def hypergradient(mode: Mode) -> Callable[..., tuple[jax.Array, Pairs]]:
    """`(*Inputs) -> (outer loss, its gradient in the pairs)`."""

    def outer(
        pairs: Pairs, params: dict, noise: jax.Array, judges: Pairs, judging_noise: jax.Array
    ) -> jax.Array:
        solution = bilevel.solve(imitation, optax.sgd(RATE), params, pairs, noise, mode=mode)
        return imitation(solution.params, judges, judging_noise)

    return jax.value_and_grad(outer)


def imitation(params: dict, pairs: Pairs, noise: jax.Array) -> jax.Array:
    """[] mean squared error of sampled actions."""
    return jnp.mean((sample(params, pairs.states, noise) - pairs.actions) ** 2)


def sample(params: dict, states: jax.Array, noise: jax.Array) -> jax.Array:
    """Actions [N, A] of a tanh-Gaussian policy."""
    hidden = states
    for weight, bias in params["layers"][:-1]:
        hidden = jax.nn.relu(hidden @ weight + bias)
    weight, bias = params["layers"][-1]
    mean, log_std = jnp.split(hidden @ weight + bias, 2, axis=-1)
    log_std = jnp.clip(params["log_std_scale"] * log_std + params["log_std_offset"], -20.0, 2.0)
    return jnp.tanh(mean + jnp.exp(log_std) * noise)


def draw(key: jax.Array, sizes: Sizes, steps: int) -> Inputs:
    """A random problem."""
    keys = iter(jax.random.split(key, 7))
    widths = [sizes.states, *[sizes.width] * sizes.hidden, 2 * sizes.actions]
    orthogonal = jax.nn.initializers.orthogonal(2**0.5)
    layer_keys = jax.random.split(next(keys), len(widths) - 1)
    layers = [
        (orthogonal(layer_key, (inputs, outputs)), jnp.zeros(outputs))
        for layer_key, inputs, outputs in zip(layer_keys, widths[:-1], widths[1:], strict=True)
    ]
    params = {"layers": layers, "log_std_scale": jnp.ones(()), "log_std_offset": -jnp.ones(())}

    def pairs(number: int) -> Pairs:
        states = jax.random.normal(next(keys), (number, sizes.states))
        return Pairs(states, jnp.tanh(jax.random.normal(next(keys), (number, sizes.actions))))

    synthetic, judges = pairs(sizes.pairs), pairs(sizes.judged)
    noise = jax.random.normal(next(keys), (steps, sizes.pairs, sizes.actions))
    judging_noise = jax.random.normal(next(keys), (sizes.judged, sizes.actions))
    return Inputs(synthetic, params, noise, judges, judging_noise)


def torch_work(inputs: Inputs, way: str, settings: Settings) -> Work | None:
    """The same gradient in PyTorch."""

    def make(device: str) -> Callable[[], Any]:
        from benchmarks import torch_bilevel

        compute = {"reverse": torch_bilevel.by_reverse, "mixed": torch_bilevel.by_mixed}[way]
        problem = torch_bilevel.from_numpy(jax.device_get(inputs), device)
        return lambda: compute(problem, RATE)

    return prepare_torch(make, settings)


def describe_memory(timing: Any) -> str:
    """Temporaries, as the compiler plans them."""
    return f"{timing.temporary_bytes / 1e6:.0f} MB of temporaries"
