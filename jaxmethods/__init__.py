"""Methods of ten papers as pure, jit-compiled, vmappable JAX functions.

Each method is a subpackage (`jaxmethods.commformer`, `jaxmethods.obd`, ...); `jaxmethods.method`
says what a method is, `jaxmethods.run` and the command line `jaxmethods run CONFIG.yaml` run any of
them, and `jaxmethods.load_run` opens what a run left behind.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmethods import (
        bilevel,
        commformer,
        envs,
        interpret,
        kid,
        language,
        lsm,
        merging,
        models,
        novo,
        obd,
        offline_rl,
        rsfm,
        sql,
        vqcd,
    )
    from jaxmethods.runs import LoadedRun, load_run, run

__version__ = "0.1.0"
PACKAGES = (
    "bilevel",
    "commformer",
    "envs",
    "interpret",
    "kid",
    "language",
    "lsm",
    "merging",
    "models",
    "novo",
    "obd",
    "offline_rl",
    "rsfm",
    "sql",
    "vqcd",
)
__all__ = [
    "LoadedRun",
    "bilevel",
    "commformer",
    "envs",
    "interpret",
    "kid",
    "language",
    "load_run",
    "lsm",
    "merging",
    "models",
    "novo",
    "obd",
    "offline_rl",
    "rsfm",
    "run",
    "sql",
    "vqcd",
]


def __getattr__(name: str) -> Any:
    """Imports a package, or what runs one, when it is first asked for."""
    if name in PACKAGES:
        return importlib.import_module(f"jaxmethods.{name}")
    if name in __all__:
        return getattr(importlib.import_module("jaxmethods.runs"), name)
    close = difflib.get_close_matches(name, __all__, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise AttributeError(f"module 'jaxmethods' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
