"""Where and with what a run was made."""

from __future__ import annotations

import pytest

from jaxmethods.records.provenance import describe_environment


@pytest.mark.parametrize(
    ("called", "command"),
    [
        (["/some/where/benchmarks/__main__.py", "--cores", "1"], "python -m benchmarks --cores 1"),
        (["/some/bin/jaxmethods", "run", "my demo"], "jaxmethods run 'my demo'"),
        ([""], "''"),
    ],
)
def test_the_command_does_not_say_where_it_is_installed(monkeypatch, called, command):
    monkeypatch.setattr("sys.argv", called)
    assert describe_environment()["command"] == command


def test_the_processor_has_a_name():
    assert describe_environment()["processor"].strip()
