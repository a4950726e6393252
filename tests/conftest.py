"""Settings of every test.

The suite has eight virtual devices in its own process, so that meshes need no second one. Programs
of a module are dropped when its tests have run: kept, they take gigabytes. A test that keeps two
processors busy for fifteen seconds must say so with `@pytest.mark.slow`: seconds of processors are
counted, those of children included, so that other work on the machine does not matter.
"""

from __future__ import annotations

import os

import hypothesis
import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile("jax", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("jax")

LONGEST = 30.0
"""Seconds of processors that a test without `slow` may take."""


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_module():
    yield
    jax.clear_caches()


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
