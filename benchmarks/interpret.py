"""Diagnostics beside their peers: PyHessian, hessian-eigenthings, curvlinops, laplax, torch.func.

The same network, data and number of products in one run; a row a peer, in `torch` the peer's time
(laplax is JAX, and compiled as ours). What each found is compared: a note says how far apart they
are. Peers that are not installed have no row. A tanh network of P = 306 weights on 64 examples is
the regime in which a torch product is all overhead, the one of 134,154 that in which it is a matrix
product.
"""

# The peers are optional:
# pyright: reportMissingImports=false
from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import torch_interpret as peers
from benchmarks.harness import Row, Settings, Work, prepare_jax, time_in_turns
from jaxmethods.interpret import cross_entropy, make_problem, trees
from jaxmethods.interpret.curvature import eigenpairs, hutchinson, layer_trace, operators, slq
from jaxmethods.interpret.influence import memorization
from jaxmethods.interpret.kernels import ntk
from jaxmethods.interpret.problem import Data, Problem
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig


class Size(NamedTuple):
    """A tanh network and its data."""

    name: str
    layers: tuple[int, ...]
    examples: int
    probes: int = 0
    steps: int = 0
    traces: int = 0
    """Probes of the trace."""
    together: int = 1
    """Probes that are multiplied at once, by us and by laplax: what is fastest for both."""
    own: int = 0
    """Probes of each example's own that err as little as `traces` common ones; 0: exactly."""


TINY = Size("tiny", (8, 20, 6), 64, 8, 30, 256, 32, 0)
SMALL = Size("small", (20, 30, 10), 256, 8, 30, 256, 32, 9)
LARGE = Size("large", (256, 256, 256, 10), 512, 2, 20, 16, 1, 2)


def rows(settings: Settings) -> Iterator[Row]:
    """Spectra, traces, eigenpairs, kernels, shadow models."""
    for size in (TINY, SMALL, LARGE):
        yield from spectra(settings, size)
        yield from traces(settings, size)
        yield from layer_traces(settings, size)
    yield from largest(settings, LARGE)
    yield from kernels(settings)
    yield from shadows(settings)


def network(params: Any, x: jax.Array) -> jax.Array:
    """tanh between layers; params are a list of (W [in, out], b)."""
    for w, b in params[:-1]:
        x = jnp.tanh(x @ w + b)
    w, b = params[-1]
    return x @ w + b


def problem_of(size: Size) -> Problem:
    """Random weights, inputs and labels; numpy's, so that PyTorch gets the same."""
    rng = np.random.default_rng(0)
    params = [
        (
            (rng.normal(size=pair) / pair[0] ** 0.5).astype(np.float32),
            (0.1 * rng.normal(size=pair[1])).astype(np.float32),
        )
        for pair in itertools.pairwise(size.layers)
    ]
    x = rng.normal(size=(size.examples, size.layers[0])).astype(np.float32)
    y = rng.integers(0, size.layers[-1], size.examples).astype(np.int32)
    params, x, y = jax.tree.map(jnp.asarray, (params, x, y))
    return make_problem(network, cross_entropy, params, (x, y))


class Language(NamedTuple):
    """A decoder, and the text that its curvature is taken on."""

    model: DecoderConfig
    sequences: int
    tokens: int
    spectrum: int
    """Lanczos steps of one probe's spectrum."""
    top: int
    """Lanczos steps of the five largest eigenvalues."""


DECODER = Language(
    DecoderConfig(
        family="llama",
        vocab_size=32_000,
        width=768,
        mlp_width=2048,
        layers=12,
        heads=12,
        kv_heads=12,
        head_dim=64,
        rotary_dim=64,
        max_positions=256,
        tied=True,
    ),
    sequences=8,
    tokens=256,
    spectrum=32,
    top=40,
)
"""110 million parameters."""


def language(settings: Settings, size: Language) -> Iterator[Row]:
    """The spectrum and the five largest eigenvalues of a decoder's Hessian, a sequence at a time.

    Args:
        settings: how long to measure.
        size: of the decoder and the text; random weights and tokens.

    Returns:
        Two rows, in products of the Hessian with a vector.
    """

    def apply(params: Any, ids: jax.Array) -> jax.Array:
        return decoder.forward(params, size.model, ids).logits

    ids = np.random.default_rng(0).integers(
        0, size.model.vocab_size, (size.sequences, 1, size.tokens + 1)
    )
    ids = jnp.asarray(ids, jnp.int32)
    params = jax.jit(decoder.init_params, static_argnums=1)(jax.random.key(0), size.model)
    data = Data(ids[..., :-1], ids[..., 1:])
    problem = make_problem(apply, cross_entropy, params, data, microbatched=True)

    def spectral(problem: Problem, key: jax.Array) -> jax.Array:
        found = slq.spectrum(operators.hessian(problem), key, size.spectrum, 1)
        return slq.spectral_sum(found, jnp.square).value

    def top(problem: Problem, key: jax.Array) -> jax.Array:
        return eigenpairs.eigenpairs(operators.hessian(problem), key, 5, size.top).values

    sizes = {"P": trees.size(problem.floats), "tokens": size.sequences * size.tokens}
    for name, make, steps in (("slq", spectral, size.spectrum), ("top5", top, size.top)):
        work = prepare_jax(make, problem, jax.random.key(0))
        (timing,) = time_in_turns([work], settings)
        yield Row(
            f"interpret/{name}_decoder", sizes | {"steps": steps}, steps, "products/s", timing
        )


def beside(
    settings: Settings,
    name: str,
    sizes: Mapping[str, Any],
    ours: Work,
    others: Mapping[str, Work | None],
    work: float,
    unit: str,
    found: Callable[[Any], float],
) -> Iterator[Row]:
    """A row for every peer that is there; `found` makes a number of what a call returns."""
    there = {peer: one for peer, one in others.items() if one is not None}
    own = float(found(ours.call()))
    apart = {peer: float(one.call()) / own - 1 for peer, one in there.items()}
    first, *timings = time_in_turns([ours, *there.values()], settings)
    if not there:
        yield Row(name, dict(sizes), work, unit, first)
    for peer, timing in zip(there, timings, strict=True):
        note = f"beside {peer}, whose number is {100 * apart[peer]:+.1f} % of ours away"
        yield Row(f"{name}_{peer}", dict(sizes), work, unit, first, torch=timing, note=note)


def peer(package: str, make: Callable[[], Callable[[], Any]], settings: Settings) -> Work | None:
    """A peer's work on the CPU cores of the run; None where it is not installed."""
    if find_spec(package) is None or jax.default_backend() != "cpu":
        return None
    if package != "laplax":
        import torch

        torch.set_num_threads(settings.cores or len(os.sched_getaffinity(0)))
    return Work(make())


def spectra(settings: Settings, size: Size) -> Iterator[Row]:
    """Stochastic Lanczos quadrature of the Hessian, r probes of m steps."""
    problem = problem_of(size)

    def ours(problem: Problem, key: jax.Array) -> jax.Array:
        found = slq.spectrum(
            operators.hessian(problem), key, size.steps, size.probes, size.together
        )
        return slq.spectral_sum(found, jnp.square).value

    counts = size.probes, size.steps
    yield from beside(
        settings,
        f"interpret/slq_{size.name}",
        {"P": trees.size(problem.floats), "probes": size.probes, "steps": size.steps},
        prepare_jax(ours, problem, jax.random.key(0)),
        {
            "pyhessian": peer("pyhessian", lambda: peers.pyhessian_slq(problem, *counts), settings),
            "eigenthings": peer(
                "hessian_eigenthings", lambda: peers.eigenthings_slq(problem, *counts), settings
            ),
            "curvlinops": peer(
                "curvlinops", lambda: peers.curvlinops_slq(problem, *counts), settings
            ),
        },
        size.probes * size.steps,
        "products/s",
        float,
    )


def trace_peers(settings: Settings, size: Size, problem: Problem) -> dict[str, Work | None]:
    """Hutchinson's trace of the Hessian by each peer."""
    count = size.traces
    return {
        "pyhessian": peer("pyhessian", lambda: peers.pyhessian_trace(problem, count), settings),
        "eigenthings": peer(
            "hessian_eigenthings", lambda: peers.eigenthings_trace(problem, count), settings
        ),
        "curvlinops": peer("curvlinops", lambda: peers.curvlinops_trace(problem, count), settings),
        "laplax": peer(
            "laplax", lambda: peers.laplax_trace(problem, network, count, size.together), settings
        ),
    }


def traces(settings: Settings, size: Size) -> Iterator[Row]:
    """Hutchinson's trace of the Hessian with a fixed number of probes."""
    problem, count = problem_of(size), size.traces

    def ours(problem: Problem, key: jax.Array) -> jax.Array:
        return hutchinson.trace(operators.hessian(problem), key, count, size.together).value

    yield from beside(
        settings,
        f"interpret/trace_{size.name}",
        {"P": trees.size(problem.floats), "probes": count},
        prepare_jax(ours, problem, jax.random.key(0)),
        trace_peers(settings, size, problem),
        count,
        "probes/s",
        float,
    )


def layer_traces(settings: Settings, size: Size) -> Iterator[Row]:
    """The trace to the same error by probes of each example's own, or exactly; a note has errors.

    The peers' probes are those of `traces`.
    """
    problem, keys = problem_of(size), jax.random.split(jax.random.key(1), 40)

    def common(problem: Problem, key: jax.Array) -> jax.Array:
        return hutchinson.trace(operators.hessian(problem), key, size.traces, size.together).value

    def ours(problem: Problem, key: jax.Array) -> jax.Array:
        if size.own:
            return layer_trace.trace(problem, key, size.own, min(size.own, 4)).value
        return layer_trace.exact_trace(problem, 4).value

    @jax.jit
    def errors(problem: Problem) -> jax.Array:
        exact = layer_trace.exact_trace(problem).value
        found = jax.lax.map(lambda key: (ours(problem, key), common(problem, key)), keys)
        return jnp.stack([jnp.sqrt(jnp.mean((own / exact - 1) ** 2)) for own in found])

    own, others = (float(100 * error) for error in errors(problem))
    for row in beside(
        settings,
        f"interpret/layer_trace_{size.name}",
        {"P": trees.size(problem.floats), "probes": size.own},
        prepare_jax(ours, problem, jax.random.key(0)),
        trace_peers(settings, size, problem),
        1,
        "traces/s",
        float,
    ):
        note = f"error {own:.2f} %, of {size.traces} common probes {others:.2f} %; {row.note}"
        yield replace(row, note=note)


def largest(settings: Settings, size: Size) -> Iterator[Row]:
    """The five largest eigenvalues to a residual of a thousandth of the first."""
    problem = problem_of(size)

    def ours(problem: Problem, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = eigenpairs.eigenpairs(operators.hessian(problem), key, 5, 30)
        return found.values, found.residuals

    yield from beside(
        settings,
        "interpret/top5_large",
        {"P": trees.size(problem.floats), "k": 5},
        prepare_jax(ours, problem, jax.random.key(0)),
        {
            "pyhessian": peer("pyhessian", lambda: peers.pyhessian_top(problem, 5), settings),
            "eigenthings": peer(
                "hessian_eigenthings", lambda: peers.eigenthings_top(problem, 5, 30), settings
            ),
        },
        1,
        "calls/s",
        lambda found: float(found[0][0]),
    )


def kernels(settings: Settings) -> Iterator[Row]:
    """The traced tangent kernel of a classifier."""
    problem = problem_of(Size("kernel", (64, 64, 64, 10), 256))

    def ours(params: Any, x: jax.Array) -> jax.Array:
        return ntk.ntk(network, params, x, method="layers")

    yield from beside(
        settings,
        "interpret/ntk",
        {"P": trees.size(problem.floats), "N": 256, "C": 10},
        prepare_jax(ours, problem.params, problem.data.inputs),
        {"torch_func": peer("torch", lambda: peers.torch_ntk(problem), settings)},
        256 * 256,
        "entries/s",
        lambda kernel: float(jnp.trace(kernel)),
    )


def shadows(settings: Settings, models: int = 64, steps: int = 100) -> Iterator[Row]:
    """64 shadow models of LiRA as one program, and one after the other in PyTorch."""
    size = Size("shadows", (16, 32, 2), 200)
    problem = problem_of(size)
    x, y = problem.data.inputs, problem.data.targets

    def ours(key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        places = memorization.complementary_halves(key, models, len(x))

        def train(key: jax.Array, own: jax.Array) -> Any:
            inputs, labels = x[own], y[own]

            def loss(params: Any) -> jax.Array:
                return jnp.mean(cross_entropy.value(network(params, inputs), labels))

            def step(params: Any, _: None) -> tuple[Any, None]:
                return trees.axpy(-0.5, jax.grad(loss)(params), params), None

            start = trees.random_like(key, problem.params, "normal")
            start = jax.tree.map(lambda leaf: leaf / leaf.shape[0] ** 0.5, start)
            return jax.lax.scan(step, start, None, length=steps)[0]

        params = memorization.train_on_places(train, key, places)
        losses = jax.vmap(lambda own: cross_entropy.value(network(own, x), y))(params)
        member = memorization.members_of(places, len(x))
        return jnp.sum(member * losses) / jnp.sum(member)

    yield from beside(
        settings,
        "interpret/shadows",
        {"models": models, "steps": steps, "N": size.examples},
        prepare_jax(ours, jax.random.key(0), x, y),
        {"torch": peer("torch", lambda: peers.torch_shadows(problem, models, steps), settings)},
        models,
        "models/s",
        float,
    )
