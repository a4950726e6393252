"""How the programs of tests are compiled: fast, and once where many tests share an array.

Tests compile far longer than they run, so XLA leaves out what makes programs faster. Without fusion
emitters jax 0.10 compiles in half the time; later versions know no such flag. A test that compares
two programs bit for bit may need them: `jax.jit(function, compiler_options=FUSED)`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

OLD = jax.__version_info__ < (0, 11)
FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *(["--xla_cpu_use_fusion_emitters=false"] if OLD else []),
]
FUSED = {"xla_cpu_use_fusion_emitters": True} if OLD else None
USES = 100
"""Programs that share a context of the compiler."""


def compile_fast() -> None:
    """For this process, before it compiles anything, and for its children."""
    given = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([flag for flag in FLAGS if flag not in given] + given)
    # Without the places of calls in every operation, programs are lowered in half the time.
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
    jax.config.update("jax_traceback_in_locations_limit", 0)
    if OLD:
        _share_contexts()


def _share_contexts() -> None:
    """Lowers `USES` programs of a thread in one context of MLIR, as jax 0.12 does by itself.

    Jax 0.10 makes a context a program and keeps two thousand: making one takes a fifth of what a
    small program costs, and looking through the kept ones another half. A program that is lowered
    while another one is has its own: what it is made of would become the other's.
    """
    from jax._src.interpreters import mlir
    from jax._src.lib.mlir import ir

    make, kept = mlir.make_ir_context, threading.local()

    def lowering() -> bool:
        try:
            return ir.Context.current is not None
        except ValueError:
            return False

    def shared() -> Any:
        if lowering():
            return make()
        if getattr(kept, "left", 0) == 0:
            kept.context, kept.left = make(), USES
        kept.left -= 1
        return kept.context

    mlir.make_ir_context = shared


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make(*arguments)` compiled whole and kept for each arguments and width of floats.

    The arguments are hashable and static. A traced function may be the first that asks: `make` runs
    in a thread of its own, where nothing is traced.
    """

    @cache
    def made(x64: bool, arguments: tuple, named: tuple) -> Any:
        def run() -> Any:
            with jax.enable_x64(x64):
                return jax.jit(lambda: make(*arguments, **dict(named)))()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(run).result()

    @wraps(make)
    def call(*arguments: Any, **named: Any) -> Any:
        return made(bool(jax.config.jax_enable_x64), arguments, tuple(sorted(named.items())))

    return call


def weights(init: Callable[..., Any], *arguments: Any, seed: int = 0, scale: float = 0.2) -> Any:
    """A tree of the shapes that `init(key, *arguments)` has, drawn by numpy: nothing is compiled.

    No leaf is zero or one, so that each of them matters: they are normal with a deviation of
    `scale`, around one where the name says that they scale and around zero elsewhere. Whole numbers
    are zero.
    """
    shapes = jax.eval_shape(lambda key: init(key, *arguments), jax.random.key(0))
    rng = np.random.default_rng(seed)

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        values = scale * rng.standard_normal(leaf.shape)
        return (values + ("scale" in jax.tree_util.keystr(path))).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers of the default type, drawn by numpy."""
    return np.random.default_rng(seed).standard_normal(shape).astype(floats())


def uniform(seed: int, low: float, high: float, *shape: int) -> np.ndarray:
    """Numbers between `low` and `high` of the default type, drawn by numpy."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(floats())


def floats() -> Any:
    """The default type: 64 bits where they are enabled."""
    return jax.dtypes.canonicalize_dtype(float)


def quick(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Values of a parameter of which only `kept` are tried in the quick suite, the others slowly.

    For variants that share their code: one of them finds nearly every fault.
    """
    values = list(values)
    assert all(one in values for one in kept), f"{kept} not all in {values}"
    return [one if one in kept else slowly(one) for one in values]


def slowly(*values: Any) -> Any:
    """Values of one variant that only the slow suite tries."""
    return pytest.param(*values, marks=pytest.mark.slow)
