"""Measures one piece of work: compile time apart, medians over repeats, peak memory.

A benchmark module offers `rows(settings) -> Iterator[Row]`. Machines are shared and noisy, so
compare ratios of rows measured in one run rather than rates of different runs.
"""

# PyTorch is optional:
# pyright: reportMissingImports=false
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

REFERENCE_FILE = Path(__file__).parent / "reference.json"


@dataclass(frozen=True)
class Settings:
    """How long and how much to measure."""

    repeats: int = 7
    seconds: float = 60.0
    """Roughly the longest time for one row, warm-up included."""
    cores: int = 0
    """CPU cores the process is pinned to; 0: all."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over repeats."""

    median: float
    low: float
    high: float
    compile: float = 0.0
    peak_bytes: int | None = None


@dataclass
class Row:
    """One line of the result: so much work in so much time."""

    name: str
    """module/what, e.g. `commformer/act`."""
    sizes: dict[str, Any]
    work: float
    """Units of work in one call."""
    unit: str
    ours: Timing
    reference: dict[str, Any] | None = None
    """The entry of reference.json for the same work: rate, who measured it, where."""
    torch: Timing | None = None
    """The same work in PyTorch, in the same session on the same device and cores."""
    note: str = ""

    @property
    def rate(self) -> float:
        return self.work / self.ours.median

    @property
    def ratio_reference(self) -> float | None:
        return self.rate / self.reference["rate"] if self.reference else None

    @property
    def ratio_torch(self) -> float | None:
        return self.torch.median / self.ours.median if self.torch else None

    def as_json(self) -> dict[str, Any]:
        ratios = {"ratio_reference": self.ratio_reference, "ratio_torch": self.ratio_torch}
        return asdict(self) | {"rate": self.rate, **ratios}


def time_jax(function: Callable, *arguments: Any, settings: Settings, donate: tuple = ()) -> Timing:
    """Times a jittable function; a donated argument is replaced by the function's first output.

    `function` returns the next value of its donated argument (or, without donation, anything).
    """
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    arguments = jax.block_until_ready(jax.tree.map(lambda x: x, arguments))
    values = list(arguments)

    def call() -> None:
        output = jax.block_until_ready(compiled(*values))
        for place in donate:
            values[place] = output[0] if isinstance(output, tuple) else output

    timing = time_calls(call, settings)
    return Timing(timing.median, timing.low, timing.high, compile_seconds, _peak_bytes(compiled))


def time_torch(make: Callable[[str], Callable[[], Any]], settings: Settings) -> Timing | None:
    """Times PyTorch on the device that JAX uses; None where PyTorch or that device is missing.

    `make(device)` builds the work and returns the call that is timed.
    """
    if find_spec("torch") is None:
        return None
    import torch

    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        return None
    torch.set_num_threads(settings.cores or len(os.sched_getaffinity(0)))
    work = make(device)

    def call() -> None:
        work()
        if device == "cuda":
            torch.cuda.synchronize()

    return time_calls(call, settings)


def time_calls(call: Callable[[], Any], settings: Settings) -> Timing:
    """Times a callable that waits for its own work: one warm-up, then repeats, then the median."""
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    inner = max(1, int(0.05 / max(once, 1e-9)))
    repeats = max(3, min(settings.repeats, int(settings.seconds / max(once * inner, 1e-9))))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(inner):
            call()
        seconds.append((time.perf_counter() - start) / inner)
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return Timing(median, low, high)


def reference(name: str) -> dict[str, Any] | None:
    """The published or measured number for the same work, with its provenance."""
    return json.loads(REFERENCE_FILE.read_text()).get(name)


def powers(first: int, last: int, factor: int = 4) -> Iterator[int]:
    """first, first * factor, ... up to and including last."""
    while first <= last:
        yield first
        first *= factor


def available_bytes() -> int:
    """Memory that a program may still take on the first device, with a fifth left for others."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics:
        free = statistics["bytes_limit"] - statistics["bytes_in_use"]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(0.8 * free)


def _peak_bytes(compiled: Any) -> int | None:
    """What the program needs at once: arguments, outputs and temporaries, by XLA's own count."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    shared = analysis.alias_size_in_bytes
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - shared
    )
