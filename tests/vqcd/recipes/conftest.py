"""One run of the tiny sequence serves all tests of the recipe."""

from __future__ import annotations

import pytest

import jaxmethods
from jaxmethods.training import loop
from tests.vqcd.recipes.tiny import values


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(run, how many programs were compiled and found again)."""
    folder = tmp_path_factory.mktemp("tiny") / "run"
    loop._program.cache_clear()
    run = jaxmethods.run(values(), folder)
    return run, loop._program.cache_info()
