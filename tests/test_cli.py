"""The command line as a new user meets it: one clear message for each mistake."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxmethods import cli
from jaxmethods.records.run_folder import RunFolder
from tests.same_numbers import check_same_numbers

ROOT = Path(__file__).parents[1]
TINY = """
# A tiny run for tests.
method: commformer
environment: {name: predator_prey, n_predators: 2, dim: 3, vision: 1}
environment_steps: 480
network: {embed: 8}
ppo: {environments: 8, rollout: 5, epochs: 5}
evaluation: {episodes: 16, max_steps: 10}
training: {log_every: 3, evaluate_every: 6, checkpoint_every: 6}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["run", str(config), "--out", str(out)]) == 0
    (out.parent / "printed").write_text(printed.getvalue())
    return out


def one_error_line(capsys, arguments, code=2) -> str:
    assert cli.main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return lines[0]


def test_a_run_leaves_everything_the_readme_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "figures", "report.html"} <= names
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert {"communication_graph.png", "episode_frames.png", "episode_animation.gif"} <= figures


def test_console_report_and_result_carry_the_same_numbers(finished):
    printed = (finished.parent / "printed").read_text()
    result = json.loads((finished / "result.json").read_text())
    metrics = result["stages"]["train"]["metrics"]
    report = (finished / "report.html").read_text().partition("<details>")[0]
    for name in ("success_rate", "episode_length"):
        assert f"train/{name}" in result["headline"]
        number = f"{metrics[name]['mean']:.4g}"
        assert re.search(rf"^ *{name} +{number} *$", printed, re.MULTILINE)
        assert f"<b>{number}</b>" in report
        assert RunFolder(finished).read_metrics()[-1][f"evaluate/{name}"] == metrics[name]["mean"]
    check_same_numbers(finished)


def test_off_a_terminal_every_record_is_a_line_to_grep(finished):
    printed = (finished.parent / "printed").read_text()
    lines = re.findall(r"^stage=train step=(\d+) of=12 seconds=\d+ (.*)$", printed, re.MULTILINE)
    assert [int(step) for step, _ in lines] == [3, 6, 9, 12]
    assert [line.startswith("success_rate=") for _, line in lines] == [False, True, False, True]
    assert all("train/loss=" in line for _, line in lines[::2])


def test_what_a_run_leaves_can_be_read_by_others(finished):
    for path in (path for path in finished.rglob("*") if path.name != "lock"):
        assert path.stat().st_mode & (0o055 if path.is_dir() else 0o044), path


@pytest.mark.slow
def test_evaluate_writes_a_result_that_says_that_it_is_fresh(finished, tmp_path, capsys):
    file = tmp_path / "fresh.json"
    assert cli.main(["evaluate", str(finished), "--json", str(file), "--seed", "5"]) == 0
    fresh, own = json.loads(file.read_text()), json.loads((finished / "result.json").read_text())
    asked = {"run": str(finished), "checkpoint": "latest", "seed": "5"}
    assert fresh["fresh"] == asked
    assert fresh.keys() - own.keys() == {"fresh"}
    assert fresh["headline"] == own["headline"]
    stage, printed = fresh["stages"]["train"], capsys.readouterr().out
    assert stage["step"] == 12
    assert stage["metrics"].keys() == own["stages"]["train"]["metrics"].keys()
    assert f"{stage['metrics']['episode_length']['mean']:.4g}" in printed
    assert "measured anew with evaluation seed 5" in printed


@pytest.mark.slow
def test_the_resolved_config_trains_the_same_run_again(finished, tmp_path):
    out = tmp_path / "again"
    assert cli.main(["run", str(finished / "config.yaml"), "--out", str(out), "--quiet"]) == 0
    names = ("train/loss", "evaluate/episode_length")
    for first, second in zip(
        RunFolder(finished).read_metrics(), RunFolder(out).read_metrics(), strict=True
    ):
        assert [first.get(n) for n in names] == [second.get(n) for n in names]


def test_evaluate_prints_the_metrics_of_a_checkpoint(finished, capsys):
    assert cli.main(["evaluate", str(finished), "--checkpoint", "best"]) == 0
    assert re.search(r"success_rate\s+[\d.]+", capsys.readouterr().out)


def test_evaluate_names_the_checkpoints_there_are(finished, capsys):
    line = one_error_line(capsys, ["evaluate", finished, "--checkpoint", "7"])
    assert "expected best, latest or one of [6, 12]" in line


def test_report_is_rebuilt_from_the_folder_alone(finished, capsys):
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    assert cli.main(["report", str(finished)]) == 0
    assert len((finished / "report.html").read_text()) == len(before)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--graph.sparsity", "-0.1"], "graph.sparsity: expected a number > 0 and <= 1, got -0.1"),
        (["--ppo.clipp", "0.1"], "ppo.clipp: unknown field (did you mean 'clip'?)"),
        (["--ppo.epochs", "many"], "ppo.epochs: expected an integer >= 1, got 'many'"),
        (["--method", "comformer"], "unknown method 'comformer' (did you mean 'commformer'?)"),
        (["--environment.name", "predatorprey"], "did you mean 'predator_prey'?"),
        (["--environment.dimm", "4"], "dimm"),
        (["--environment.dim", "1"], "dim"),
        (["--network.heads", "3"], "heads"),
        (["--seed"], "--seed needs a value"),
        (["stray"], "stray"),
    ],
)
def test_a_wrong_field_is_one_line_before_anything_is_made(
    config, tmp_path, capsys, overrides, expected
):
    out = tmp_path / "run"
    assert expected in one_error_line(capsys, ["run", config, "--out", out, *overrides])
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "arguments", "expected"),
    [
        (TINY, ["--environment_steps", "1e3"], "environment_steps: expected an integer >= 1, got "
         "'1e3'; write 1000"),
        (TINY, ["--environment.n_predators", "1.5"], "environment.n_predators: expected an integer"
         ", got 1.5"),
        (TINY, ["--environment.vision", "-1"], "environment: vision must be an integer >= 0"),
        (TINY, ["--environment", "predator_prey"], "environment: expected a mapping of its fields,"
         " got 'predator_prey'; write environment: {name: predator_prey}"),
        (TINY, ["--environment.mode", "{name: mixed}"], "mode: expected text, got {'name': 'mixed'}"
         "; write mode: mixed"),
        (TINY, ["--network.gate", "true"], "network.gate: expected a mapping of its fields, or null"
         ", got true; write gate: {}"),
        (TINY, ["--graph.kind", "fixed"], "graph.edges: is required with kind: fixed; write a row "
         "of 0 and 1 for each agent, edges: [[1, 0], [1, 1]]"),
        (TINY, ["--graph.edges", "[[1]]"], "graph.edges: expected null with kind: learned; write "
         "kind: fixed"),
        (TINY, ["--mesh.data", "0"], "mesh.data: expected an integer >= 1 or -1, got 0"),
        (TINY, ["--training.writers", "wandb,tensorboard"], "write writers: [wandb, tensorboard]"),
        (TINY, ["--training.writers", "wandb", "tensorboard"], 'is one word: --field "[a, b]"'),
        (TINY, ["--graph.no-self-edges"], "write --graph.self-edges false"),
        (TINY, ["--graph.self-edges", "--seed", "3"], "--graph.self-edges needs a value"),
        (TINY, ["--outt", "x"], "--outt is neither option nor field (did you mean 'out'?)"),
        ("- method: obd\n", [], "expected a mapping of fields, got a list; write one `field: value`"
         " a line, the first of them `method: NAME`"),
        ("method: obd_table\n", [], "unknown method 'obd_table' (did you mean 'obd_tables'?)"),
        ("method: obd_tables\npath: x\nevaluation: pendulum\n", [], "expected a mapping "
         "of its fields, got 'pendulum'; write evaluation: {environment: pendulum}"),
        ("method: merge\nexperts: [b]\nalgorithm: ties\n", [], "base: is required; it is a path"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_what_to_write_instead(tmp_path, capsys, content, arguments, expected):
    (tmp_path / "run.yaml").write_text(content)
    out = tmp_path / "out"
    line = one_error_line(capsys, ["run", tmp_path / "run.yaml", "--out", out, *arguments])
    assert expected in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu", "a.yaml"], "unknown command 'rnu' (did you mean 'run'?)"),
        (["a.yaml"], "unknown command 'a.yaml'; write jaxmethods run a.yaml"),
        (["evaluate", __file__], f"a config is run by jaxmethods run {__file__}"),
        (["report", __file__], "expected the folder of a run, got a file"),
        (["compare", __file__], "expected the folder of a run, got a file"),
        (["compare"], "compare needs at least one run folder"),
        (["methods", "obdd"], "unknown method 'obdd' (did you mean 'obd'?)"),
    ],
)
def test_a_wrong_command_is_told_the_right_one(capsys, arguments, expected):
    assert expected in one_error_line(capsys, arguments)


def test_running_a_folder_says_how_to_go_on(finished, capsys):
    expected = f"to go on with its run: jaxmethods run {finished}/config.yaml --out {finished} --re"
    assert expected in one_error_line(capsys, ["run", finished])


def test_a_missing_config_is_named(tmp_path, capsys):
    line = one_error_line(capsys, ["run", tmp_path / "no.yaml"])
    assert "no.yaml: cannot be read" in line


def test_a_config_without_a_method_lists_the_methods(tmp_path, capsys):
    (tmp_path / "empty.yaml").write_text("seed: 1\n")
    assert "known: commformer" in one_error_line(capsys, ["run", tmp_path / "empty.yaml"])


def test_a_second_run_into_the_same_folder_is_refused(config, finished, capsys):
    assert "--resume" in one_error_line(capsys, ["run", config, "--out", finished])


def test_resume_with_another_config_is_refused(config, finished, capsys):
    arguments = ["run", config, "--out", finished, "--resume", "--ppo.clip", "0.3"]
    assert "ppo.clip was 0.2, now 0.3" in one_error_line(capsys, arguments)


def test_evaluating_something_else_is_refused(tmp_path, capsys):
    assert "not a run folder" in one_error_line(capsys, ["evaluate", tmp_path])


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_a_seed_that_a_key_cannot_hold_is_refused(seed, tmp_path, capsys):
    line = one_error_line(capsys, ["evaluate", tmp_path, "--seed", seed])
    assert f"--seed: expected an integer from 0 to 2147483647, got {seed}" in line


def test_methods_are_listed(capsys):
    assert cli.main(["methods"]) == 0
    assert "commformer" in capsys.readouterr().out.split()


def start(config: Path, out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "jaxmethods.cli", "run", str(config)]
    return subprocess.Popen(
        [*command, "--out", str(out), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_ctrl_c_while_compiling_ends_with_one_line(config, tmp_path):
    process = start(config, tmp_path / "run")
    assert process.stdout is not None
    process.stdout.readline()  # "train: 12 steps": compilation begins
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    first, *_, last = errors.strip().splitlines()
    assert first.startswith("jaxmethods: SIGINT: will stop and save when what is under way")
    assert "Ctrl-C now stops at once" in first
    assert last.startswith("jaxmethods: SIGINT: stopped")
    assert "Traceback" not in errors


@pytest.mark.slow
def test_ctrl_c_while_training_saves_and_resume_goes_on(config, tmp_path, finished):
    out = tmp_path / "run"
    rarely = ("--training.evaluate_every", "100", "--training.checkpoint_every", "100")
    long = ("--environment_steps", "12000", *rarely)
    process = start(config, out, *long)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    stopped = re.search(r"saved at step (\d+) of 300", errors)
    assert stopped, errors
    assert (out / "checkpoints" / "train" / stopped[1]).is_dir()
    assert (out / "report.html").is_file()
    assert cli.main(["run", str(config), "--out", str(out), "--resume", "--quiet", *long]) == 0
    steps = [row["step"] for row in RunFolder(out).read_metrics()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 300
