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
from collections.abc import Callable, Iterator, Sequence
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
    processor: bool = False
    """Count the processor's seconds, not the clock's: on one core of a busy machine they are those
    of an idle one."""
    questions: Path | None = None
    """Multiple-choice questions for `benchmarks/novo.py`; None: drawn."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, over repeats."""

    median: float
    low: float
    high: float
    compile: float = 0.0
    peak_bytes: int | None = None
    """Arguments, outputs and temporaries, by XLA's own count."""
    temporary_bytes: int | None = None


@dataclass(frozen=True)
class Work:
    """A call that waits for its own work, ready to be timed."""

    call: Callable[[], Any]
    compile: float = 0.0
    peak_bytes: int | None = None
    temporary_bytes: int | None = None


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
    """The same work in PyTorch, in the same run on the same device and cores."""
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
    return time_in_turns([prepare_jax(function, *arguments, donate=donate)], settings)[0]


def time_torch(make: Callable[[str], Callable[[], Any]], settings: Settings) -> Timing | None:
    """Times PyTorch on the device that JAX uses; None where PyTorch or that device is missing.

    `make(device)` builds the work and returns the call that is timed.
    """
    work = prepare_torch(make, settings)
    return None if work is None else time_in_turns([work], settings)[0]


def prepare_jax(function: Callable, *arguments: Any, donate: tuple = ()) -> Work:
    """Compiles a function for its arguments (see `time_jax`)."""
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    arguments = jax.block_until_ready(jax.tree.map(lambda x: x, arguments))
    values = list(arguments)

    def call() -> Any:
        output = jax.block_until_ready(compiled(*values))
        for place in donate:
            values[place] = output[0] if isinstance(output, tuple) else output
        return output

    return Work(call, compile_seconds, *_bytes(compiled))


def prepare_torch(make: Callable[[str], Callable[[], Any]], settings: Settings) -> Work | None:
    """Builds PyTorch's work (see `time_torch`)."""
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

    return Work(call)


def time_in_turns(works: Sequence[Work], settings: Settings) -> list[Timing]:
    """Times several works, each once a round, so that a busy moment meets all of them.

    One warm-up each, then rounds; a median over rounds each. A call shorter than a twentieth of a
    second is repeated within its turn.
    """
    clock = time.process_time if settings.processor else time.perf_counter
    once = [_seconds(work.call, 1, clock) for work in works]
    inner = [max(1, int(0.05 / max(seconds, 1e-9))) for seconds in once]
    total = sum(seconds * calls for seconds, calls in zip(once, inner, strict=True))
    rounds = max(3, min(settings.repeats, int(settings.seconds / max(total, 1e-9))))
    seconds = [
        [_seconds(work.call, calls, clock) for work, calls in zip(works, inner, strict=True)]
        for _ in range(rounds)
    ]
    quantiles = np.quantile(seconds, (0.25, 0.5, 0.75), axis=0).T.tolist()
    return [
        Timing(median, low, high, work.compile, work.peak_bytes, work.temporary_bytes)
        for work, (low, median, high) in zip(works, quantiles, strict=True)
    ]


def _seconds(call: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        call()
    return (clock() - start) / calls


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


def _bytes(compiled: Any) -> tuple[int | None, int | None]:
    """What the program needs at once (arguments, outputs, temporaries), and the temporaries."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None, None
    peak = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return int(peak), int(analysis.temp_size_in_bytes)
