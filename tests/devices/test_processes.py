"""A run of two processes is one run: one result, one folder, one end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from jaxmethods.devices import processes as distributed
from jaxmethods.errors import UserError
from jaxmethods.records.run_folder import RunFolder
from tests.training import distributed_toy
from tests.training.test_loop import ROOT, rows_without_times

pytestmark = pytest.mark.slow
SECONDS = 120
"""Long enough for a busy machine; what hangs is ended."""
CONFIG = """
method: toy
steps: 23
training: {log_every: 4, evaluate_every: 8, checkpoint_every: 16}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "toy.yaml"
    path.write_text(CONFIG)
    return path


def start(config: Path, out: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    """One process of a run, on one virtual device."""
    command = [sys.executable, "-m", "tests.training.distributed_toy", "run", str(config)]
    return subprocess.Popen(
        [*command, "--out", str(out), "--distributed", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(
    config: Path,
    out: Path,
    *arguments: str,
    own: tuple[str, ...] = (),
    second: Mapping[str, str] = MappingProxyType({}),
) -> list[subprocess.Popen]:
    """Both processes of a run: `own` holds an argument for each of them, `second` what is added to
    the environment of the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        start(
            config,
            out,
            "--mesh.data=-1",
            *arguments,
            *own[process : process + 1],
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(process),
            JAXMETHODS_HEARTBEAT_SECONDS="20",
            **(second if process == 1 else {}),
        )
        for process in range(2)
    ]


def ends(processes: list[subprocess.Popen], seconds: float = SECONDS) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each; a process that hangs fails the test."""
    try:
        said = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def wait_for_rows(out: Path) -> None:
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + SECONDS
    while not metrics.exists() or not metrics.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stopped_and_resumed(config, tmp_path_factory):
    """A run of two processes that SIGTERM to the second one stopped, before and after resuming."""
    out = tmp_path_factory.mktemp("two") / "run"
    stopped = ends(start_two(config, out, second={distributed_toy.STOP_AT: "12"}))
    resumed = ends(start_two(config, out, "--resume"))
    return out, stopped, resumed


def test_a_signal_to_one_process_stops_both_at_the_same_step(stopped_and_resumed):
    _, stopped, _ = stopped_and_resumed
    assert [code for code, _, _ in stopped] == [143, 143], stopped
    for _, _, errors in stopped:
        assert "SIGTERM: stopped and saved at step 12 of 23" in errors


def test_two_processes_give_the_results_of_one(stopped_and_resumed, config, tmp_path):
    out, _, resumed = stopped_and_resumed
    assert [code for code, _, _ in resumed] == [0, 0], resumed
    alone = tmp_path / "alone"
    assert distributed_toy.main(["run", str(config), "--out", str(alone), "--quiet"]) == 0
    two, one = (rows_without_times(RunFolder(path)) for path in (out, alone))
    names = ("train/loss", "train/count", "evaluate/score")
    assert [(row["stage"], row["step"]) for row in two] == [(r["stage"], r["step"]) for r in one]
    for name in names:
        left, right = ([row[name] for row in rows if name in row] for rows in (two, one))
        np.testing.assert_allclose(left, right, rtol=1e-4)
    weights = [np.loadtxt(path / "figures" / "weights.txt") for path in (out, alone)]
    np.testing.assert_allclose(*weights, rtol=1e-4, atol=1e-5)


def test_only_the_first_process_speaks_and_it_leaves_everything(stopped_and_resumed):
    out, _, resumed = stopped_and_resumed
    (_, first, _), (_, second, _) = resumed
    assert "report:" in first
    assert "step" not in second
    assert "report" not in second
    names = {path.name for path in out.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "environment.json", "report.html"} <= names


def test_a_folder_that_is_refused_is_refused_to_both(stopped_and_resumed, config):
    out, _, _ = stopped_and_resumed
    for code, _, errors in ends(start_two(config, out)):
        assert code == 2, errors
        assert "holds a run already; add --resume" in errors
        assert "Traceback" not in errors


def test_processes_with_different_configs_are_refused(config, tmp_path):
    first, second = start_two(config, tmp_path / "run", own=("--seed=1", "--seed=2"))
    for code, _, errors in ends([first, second]):
        assert code == 2, errors
        assert "the configs are not the same in all processes" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_process_is_killed_the_other_ends_with_an_error(config, tmp_path, killed):
    processes = start_two(config, tmp_path / "run", "--steps=100000")
    wait_for_rows(tmp_path / "run")
    processes[killed].kill()
    code, _, errors = ends(processes)[1 - killed]
    assert code not in (0, 2), errors


def test_an_incomplete_environment_is_one_line_that_names_what_is_not_set(config, tmp_path):
    one = start(config, tmp_path / "run", JAX_COORDINATOR_ADDRESS="127.0.0.1:1")
    ((code, _, errors),) = ends([one])
    assert code == 2, errors
    assert "JAX_NUM_PROCESSES, JAX_PROCESS_ID" in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "here"}, "expected host:port, got 'here'"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES: expected an integer >= 1, got 'two'"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID: expected an integer >= 0, got '-1'"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "expected less than"),
    ],
)
def test_a_malformed_environment_is_named(environment, expected):
    with pytest.raises(UserError, match=expected):
        distributed.initialize(environment)
