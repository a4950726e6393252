"""Settings of every test.

The suite has eight virtual devices in its own process, so that meshes need no second one. Programs
are kept from module to module, which saves most compilations of single operations, until the
process has grown by gigabytes. A test that keeps two processors busy for ten seconds must say so
with `@pytest.mark.slow`: seconds of processors are counted, those of children included, so that
other work on the machine does not matter.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
from pathlib import Path

import hypothesis
import jax
import pytest

from tests import programs

programs.compile_fast()
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile("jax", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("jax")

gc.set_threshold(50_000, 20, 20)
"""Tracing makes many small objects that live on; looking through them took a tenth of the time."""

LONGEST = 20.0
"""Seconds of processors that a test without `slow` may take."""


ROOM = 5e9
"""Bytes of memory that a process may take before it drops its programs."""
MAPPINGS = 40_000
"""Mappings of memory that it may have then: programs are several each, and Linux allows 65,530."""


def memory() -> float:
    """Bytes of memory of this process; where the system doesn't say, as if it were too many."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return math.inf
    return pages * os.sysconf("SC_PAGE_SIZE")


def mappings() -> int:
    """Mappings of memory of this process, where the system says."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0


def give_back() -> None:
    """Returns freed memory to the system where the C library can, so that it counts no more."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
    yield
    if memory() > ROOM or mappings() > MAPPINGS:
        jax.clear_caches()
        gc.collect()
        give_back()


LONG_FILES = (
    "tests/rsfm/recipes/test_compare.py",
    "tests/devices/test_stages_on_processes.py",
    "tests/commformer/test_method.py",
    "tests/benchmarks/test_on_gpu.py",
    "tests/test_diagnosis.py",
    "tests/commformer/test_processes.py",
    "tests/vqcd/recipes/test_baselines.py",
    "tests/vqcd/recipes/test_continual.py",
    "tests/kid/recipes/test_processes.py",
    "tests/commformer/test_mesh.py",
)
"""A minute of a processor and more each: they begin first, so that no worker waits for one at the
end."""


def pytest_collection_modifyitems(items: list[pytest.Item]):
    items.sort(key=lambda item: not item.nodeid.startswith(LONG_FILES))


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # modules and tests stay


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item):
    before = sum(os.times()[:4])
    outcome = yield
    seconds = sum(os.times()[:4]) - before
    if outcome.excinfo is None and seconds > LONGEST and not item.get_closest_marker("slow"):
        outcome.force_exception(
            AssertionError(
                f"took {seconds:.1f} s of processor time; make it smaller or mark it slow"
            )
        )
