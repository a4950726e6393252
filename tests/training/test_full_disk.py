"""A disk that fills, folders that cannot be written or read: one line, and nothing is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxmethods import cli, files
from jaxmethods.records import progress
from jaxmethods.records.run_folder import RunFolder, RunFolderError
from jaxmethods.stages import Evaluation, Recipe
from jaxmethods.training import runner
from jaxmethods.training.checkpoints import CheckpointError, Checkpoints
from tests.training import distributed_toy, toy
from tests.training.test_loop import ROOT, interrupted_run, rows_without_times, snapshot

CONFIG = """
method: toy
steps: 24
width: 4000
training: {log_every: 2, evaluate_every: 4, checkpoint_every: 4, writers: [tensorboard]}
"""
FULL = "No space left on device"


def one_line(capsys, *arguments: object) -> str:
    assert distributed_toy.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("method: toy\nsteps: 8\ntraining: {log_every: 4, checkpoint_every: 4}\n")
    return path


@pytest.fixture
def finished(config, tmp_path):
    assert distributed_toy.main(["run", str(config), "--quiet", "--out", str(tmp_path / "r")]) == 0
    return tmp_path / "r"


@pytest.fixture
def mounted(tmp_path):
    """Mounts things at a place of its own; only root may."""
    places = []

    def mount(*arguments: str) -> Path:
        place = tmp_path / f"mounted{len(places)}"
        place.mkdir()
        done = subprocess.run(["mount", *arguments, str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("may not mount")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


class FillingProgress(progress.Progress):
    """Fills the disk at a row, but for some bytes."""

    place, at, left = Path(), 0, 0
    rows = 0

    def row(self, row):
        super().row(row)
        type(self).rows += 1
        if self.rows == self.at:
            disk = os.statvfs(self.place)
            free = disk.f_bavail * disk.f_frsize
            (self.place / "filler").write_bytes(b"x" * max(0, free - self.left))


@pytest.mark.slow
def test_a_disk_that_fills_at_random_moments_costs_no_checkpoint(
    mounted, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("tensorboardX")
    config = tmp_path / "toy.yaml"
    config.write_text(CONFIG)
    whole = tmp_path / "whole"
    assert distributed_toy.main(["run", str(config), "--quiet", "--out", str(whole)]) == 0
    draw = random.Random(0)
    for _ in range(10):
        disk = mounted("-t", "tmpfs", "-o", "size=6m", "tmpfs")
        lefts = (0, 0, 4096, 8192, draw.randrange(300_000), draw.randrange(2_000_000))
        FillingProgress.place, FillingProgress.rows = disk, 0
        FillingProgress.at, FillingProgress.left = draw.randrange(1, 15), draw.choice(lefts)
        arguments = ["run", str(config), "--quiet", "--out", str(disk / "run")]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(progress, "Progress", FillingProgress)
            code = distributed_toy.main(arguments)
        errors = capsys.readouterr().err.strip().splitlines()
        if code:
            assert code == 2
            # A second line says that the report has no room either.
            assert all(line.startswith("jaxmethods: ") and FULL in line for line in errors), errors
        (disk / "filler").unlink()
        assert distributed_toy.main([*arguments, "--resume"]) == 0
        assert rows_without_times(RunFolder(disk / "run")) == rows_without_times(RunFolder(whole))


def full_disk(*arguments: object, **named: object):
    raise OSError(errno.ENOSPC, FULL)


def test_a_checkpoint_that_finds_no_room_leaves_those_that_are_there(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path / "c")
    saved.save(1, {"x": jnp.ones(2)}, None)
    before = snapshot(tmp_path)
    monkeypatch.setattr(saved._orbax, "save", full_disk)
    expected = rf"c/2: cannot be written \({FULL}\); the last one is .*c/1"
    with pytest.raises(CheckpointError, match=expected):
        saved.save(2, {"x": jnp.ones(2)}, None)
    assert snapshot(tmp_path) == before


def test_a_checkpoint_is_not_begun_where_it_has_no_room(tmp_path, monkeypatch, mounted):
    disk = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    saved = Checkpoints(disk)
    saved.save(1, {"x": jnp.ones(2)}, None)
    monkeypatch.setattr(saved._orbax, "save", lambda *_, **__: pytest.fail("it was begun"))
    with pytest.raises(CheckpointError, match=rf"cannot be written \({FULL}\); the last one is"):
        saved.save(2, {"x": jnp.ones(1 << 18)}, None)
    assert saved.steps() == [1]


def test_a_full_disk_is_named_although_it_stands_behind_another_error():
    error = RuntimeError("the event loop is closed")
    error.__context__ = OSError(errno.ENOSPC, FULL)
    assert files.reason(error) == FULL


def test_a_row_that_finds_no_room_is_not_half_written(tmp_path, mounted):
    from jaxmethods.records.writers import JsonLinesWriter

    disk = mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    writer = JsonLinesWriter(disk / "metrics.jsonl")
    row = {"stage": "s", "step": 1, "train/long": [0.1] * 3000}
    with pytest.raises(files.FileError, match=FULL):
        list(map(writer.write, [row] * 10))
    writer.close()
    assert [len(r) for r in RunFolder(disk).read_metrics()] == [3] * len(
        RunFolder(disk).read_metrics()
    )
    assert (disk / "metrics.jsonl").read_bytes().endswith(b"\n")


def test_what_a_stage_leaves_behind_is_whole_or_absent(tmp_path):
    folder = tmp_path / "run"
    with files.staged(folder) as place:
        (place / "old.txt").write_text("old")
        (place / "model").mkdir()
        (place / "model" / "a").write_text("old")

    def write_a_part():
        with files.staged(folder) as place:
            (place / "old.txt").write_text("new")
            full_disk()

    with pytest.raises(files.FileError, match=FULL):
        write_a_part()
    assert (folder / "old.txt").read_text() == "old"
    with files.staged(folder) as place:
        (place / "model").mkdir()
        (place / "model" / "b").write_text("new")
    assert [path.name for path in (folder / "model").iterdir()] == ["b"]
    assert sorted(path.name for path in folder.iterdir()) == ["model", "old.txt"]


def test_figures_that_cannot_be_drawn_are_one_line_and_the_run_is_saved(
    config, tmp_path, capsys, monkeypatch
):
    def report(results, folder):
        (folder / "figures" / "half.png").write_text("")
        raise RuntimeError("no display")

    monkeypatch.setattr(distributed_toy, "report", report)
    line = one_line(capsys, "run", config, "--quiet", "--out", tmp_path / "run")
    assert "report: cannot be written (RuntimeError: no display); what was trained" in line
    assert not (tmp_path / "run" / "figures" / "half.png").exists()
    assert (tmp_path / "run" / "report.html").is_file()
    assert Checkpoints(tmp_path / "run" / "checkpoints" / "second").latest() == 8


def test_a_read_only_run_is_read_and_not_written(finished, config, mounted, capsys):
    place = mounted("--bind", "-o", "ro", str(finished))
    for command in ("evaluate", "compare"):
        assert distributed_toy.main([command, str(place)]) == 0
    assert "Read-only file system" in one_line(capsys, "report", place)
    line = one_line(capsys, "run", config, "--quiet", "--resume", "--out", place)
    assert "cannot be written (Read-only file system)" in line


@pytest.mark.slow
def test_an_unreadable_run_is_one_line_that_says_so(finished, config):
    """As a person who may not: root may everything."""
    program = f"""
        import os, sys
        from jaxmethods import registry
        from jaxmethods.reports import compare, report
        from jaxmethods.training import runner
        from tests.training import distributed_toy
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        run = {str(finished)!r}
        train = ["run", {str(config)!r}, "--quiet", "--resume", "--out", run]
        commands = [["evaluate", run], ["report", run], ["compare", run], train]
        print([distributed_toy.main(command) for command in commands])
    """
    for closed in ("checkpoints", "metrics.jsonl", "config.yaml", "."):
        (finished / closed).chmod(0o000)
        for parent in finished.parents:
            if os.stat(parent).st_uid == os.getuid() and parent.is_relative_to("/tmp/"):
                parent.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"HOME": "/tmp", "JAX_COMPILATION_CACHE_DIR": ""},
        )
        (finished / closed).chmod(0o755)
        assert "Traceback" not in done.stderr, (closed, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("jaxmethods")]
        assert lines, (closed, done)
        assert all("ermission denied" in line for line in lines), (closed, lines)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_not_another_process(tmp_path, monkeypatch, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(RunFolderError, match=f"has no locks .{os.strerror(number)}.*_NO_LOCK=1"):
        runner.run(toy.recipe(), toy.config(), folder)
    monkeypatch.setenv("JAXMETHODS_NO_LOCK", "1")
    with folder.claim(toy.config(), resume=True):
        pass


def test_paths_of_another_kind_are_one_line(config, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for out, expected in [
        (file, "is a file"),
        (file / "run", "cannot be written (Not a directory)"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("/proc/run"), "cannot be written"),
    ]:
        assert expected in one_line(capsys, "run", config, "--quiet", "--out", out)
    for command in ("report", "compare"):
        assert "expected the folder of a run" in one_line(capsys, command, file)
    run = tmp_path / "odd"
    run.mkdir()
    (run / "config.yaml").mkdir()
    assert "odd" in one_line(capsys, "evaluate", run)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("metrics.jsonl", b"\xff\n{}\n", "line 1 is not JSON"),
        ("metrics.jsonl", b'5\n{"step": 1}\n', "line 1 is not a row"),
        ("environment.json", b"[", "environment.json: is not a JSON object"),
    ],
)
def test_a_damaged_run_is_named(tmp_path, capsys, name, content, expected):
    (tmp_path / "config.yaml").write_text("method: toy\nsteps: 8\n")
    (tmp_path / name).write_bytes(content)
    assert cli.main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1


def test_a_failing_evaluation_saves_the_state_before_its_error_is_raised(tmp_path):
    def judge(measures):
        raise RuntimeError("the simulator is gone")

    evaluation = Evaluation(toy.distance, judge)
    stage = toy.recipe().stages[0]._replace(evaluation=evaluation)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(runner.StageError, match=r"simulator is gone.*saved at step 8"):
        runner.run(Recipe([stage]), toy.config(), folder)
    assert Checkpoints(folder.checkpoints / "first").steps() == [8]
    assert [row["step"] for row in folder.read_metrics()] == [4, 8]
    runner.run(Recipe(toy.recipe().stages[:1]), toy.config(), folder, resume=True)
    judged = [row["step"] for row in folder.read_metrics() if "evaluate/score" in row]
    assert judged == [8, 16, 23]


def test_a_last_evaluation_that_failed_is_made_up_for(tmp_path):
    """Else the last number of the run would be that of an earlier state."""

    def judge(measures):
        calls.append(measures)
        if len(calls) == 3:
            raise RuntimeError("the simulator is gone")
        return measures

    calls = []
    whole = Recipe(toy.recipe().stages[:1])
    broken = whole.stages[0]._replace(evaluation=Evaluation(toy.distance, judge, score="score"))
    folder, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    with pytest.raises(runner.StageError, match=r"saved at step 23"):
        runner.run(Recipe([broken]), toy.config(), folder)
    for _ in range(2):  # once only
        runner.run(Recipe([broken]), toy.config(), folder, resume=True)
    runner.run(whole, toy.config(), other)
    scores, expected = (
        {row["step"]: row["evaluate/score"] for row in rows if "evaluate/score" in row}
        for rows in (folder.read_metrics(), other.read_metrics())
    )
    assert scores == expected
    assert len(calls) == 4
    kept = [Checkpoints(one.checkpoints / "first", scored=True) for one in (folder, other)]
    assert kept[0].score(23) == pytest.approx(kept[1].score(23))
    assert kept[0].best() == kept[1].best()


def test_a_score_that_no_metric_has_is_refused_before_the_first_step(tmp_path):
    stage = toy.recipe().stages[0]
    stage = stage._replace(evaluation=Evaluation(toy.distance, score="accuracy"))
    with pytest.raises(runner.StageError, match=r"metrics \(score\), got 'accuracy'"):
        runner.run(Recipe([stage]), toy.config(), RunFolder(tmp_path / "run"))
    host = Evaluation(toy.distance, lambda measures: {"loss": jnp.ones(1)}, "accuracy")
    judged = stage._replace(evaluation=host)
    folder = RunFolder(tmp_path / "judged")
    with pytest.raises(runner.StageError, match=r"metrics \(loss\).*saved at step 8"):
        runner.run(Recipe([judged]), toy.config(), folder)
    assert Checkpoints(folder.checkpoints / "first").latest() == 8


def test_an_interrupted_run_says_what_it_could_not_save(tmp_path, monkeypatch):
    folder = interrupted_run(tmp_path / "run")
    before = snapshot(folder.checkpoints)
    from tests.training.test_loop import StopAt

    class Full(StopAt):
        def row(self, row):
            monkeypatch.setattr(Checkpoints, "_write", full_disk)
            os.kill(os.getpid(), self.number)

    with pytest.raises(CheckpointError, match=FULL):
        runner.run(toy.recipe(), toy.config(), folder, resume=True, progress=Full(0, 15))
    assert snapshot(folder.checkpoints) == before
