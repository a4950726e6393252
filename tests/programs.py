"""How the programs of tests are compiled: fast, and once where many tests share an array.

Tests compile far longer than they run, so XLA leaves out what makes programs faster. Without fusion
emitters jax 0.10 compiles in half the time; later versions know no such flag. A test that compares
two programs bit for bit may need them: `jax.jit(function, compiler_options=FUSED)`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import jax

OLD = jax.__version_info__ < (0, 11)
FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *(["--xla_cpu_use_fusion_emitters=false"] if OLD else []),
]
FUSED = {"xla_cpu_use_fusion_emitters": True} if OLD else None


def compile_fast() -> None:
    """For this process, before it compiles anything, and for its children."""
    given = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([flag for flag in FLAGS if flag not in given] + given)


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make(*arguments)` compiled whole and kept for each arguments and width of floats.

    The arguments are hashable and static. A traced function may be the first that asks: its
    tracers do not reach `make`.
    """

    @cache
    def made(x64: bool, arguments: tuple, named: tuple) -> Any:
        del x64
        with jax.ensure_compile_time_eval():
            return jax.jit(lambda: make(*arguments, **dict(named)))()

    @wraps(make)
    def call(*arguments: Any, **named: Any) -> Any:
        return made(bool(jax.config.jax_enable_x64), arguments, tuple(sorted(named.items())))

    return call
