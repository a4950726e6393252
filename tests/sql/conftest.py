"""One pool of workers and one small database for each module."""

from __future__ import annotations

import pytest

from jaxmethods.sql import Executor, Limits
from tests.sql.small import make_database


@pytest.fixture(scope="module")
def executor():
    with Executor(Limits(seconds=5.0)) as pool:
        yield pool


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return make_database(tmp_path_factory.mktemp("data") / "club.sqlite")
