"""The report and the writers: what a run leaves for people."""

from __future__ import annotations

import json
import re
import sys
import types

import numpy as np
import pytest

from jaxmethods.config import ConfigError, LoopConfig, MeshConfig
from jaxmethods.errors import MissingExtraError
from jaxmethods.numerics.statistics import summarize
from jaxmethods.records import writers
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.reports import page as pages
from jaxmethods.reports import report
from jaxmethods.reports.curves import Curve, most_important, titled
from jaxmethods.reports.result import Judged
from jaxmethods.training import runner
from tests.training import toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("report") / "<toy> & run")
    runner.run(toy.recipe(12, 4), toy.config(seeds=2), folder)
    report.write_report(folder)
    return folder


def test_the_report_is_one_self_contained_page(folder):
    page = folder.report.read_text()
    assert page.count("data:image/svg+xml;base64,") == 2  # one point is no learning curve
    assert not re.search(r"(src|href)=['\"]?(https?:|file:|/)", page)
    assert "&lt;toy&gt; &amp; run" in page
    assert "<toy>" not in page


def test_the_report_states_the_last_evaluation_with_its_standard_error(folder):
    last = [r for r in folder.read_metrics() if r["stage"] == "second"][-1]["evaluate/score"]
    assert str(summarize(last)) in folder.report.read_text()


def test_the_page_begins_with_the_result_and_folds_the_rest(folder):
    """A sentence and curves; the config and the environment are not in the way."""
    shown, _, folded = folder.report.read_text().partition("<details>")
    sentence = re.search(r"<p class=headline>Score is <b>(.*) ± (.*)</b> after step 4 \(", shown)
    assert sentence
    assert "standard error" in shown
    assert shown.count("image/svg+xml") == 2
    assert "<pre>" not in shown
    assert "<pre>" in folded
    assert "width=device-width" in shown
    assert sentence[1] not in folded


def test_one_seed_is_shown_with_the_error_of_its_own_evaluation():
    metrics = {"score": np.array([87.19]), "score_error": np.array([1.1]), "loss": np.array([0.5])}
    judged = {"last": Judged(4, 1.0, metrics)}
    sentence = report._headline(judged, ["last/score"], trains=False)
    assert "Score is <b>87.2 ± 1.1</b> (one seed, the standard error is of its own" in sentence
    assert "Loss is <b>0.5</b> (one seed)." in report._headline(judged, ["last/loss"], False)
    assert "score" not in report._stages(judged, ["last/score"])


def test_names_are_written_as_papers_write_them():
    assert titled("offline_rl") == "Offline RL"
    assert titled("miou") == "mIoU"
    assert report.label_of("last/mae_mean_probe", ["last/mae_mean_probe"]) == "MAE mean probe"


def test_a_schedule_is_no_curve_that_matters():
    steps, values = np.arange(3), np.arange(3.0)[:, None]
    curves = {("", name): Curve("", name, steps, values) for name in ("train/rate", "train/norm")}
    assert [curve.name for curve in most_important(curves, [])] == ["train/norm"]


def test_the_environment_is_recorded(folder):
    recorded = json.loads(folder.environment.read_text())
    assert recorded["jax"]
    assert recorded["jax"] in folder.report.read_text()


def test_tensorboard_events_are_written(tmp_path):
    pytest.importorskip("tensorboardX")
    folder = RunFolder(tmp_path / "run")
    config = toy.config()
    training = config.training.model_copy(update={"writers": ("tensorboard",)})
    runner.run(toy.recipe(8, 8), config.model_copy(update={"training": training}), folder)
    assert list((folder.path / "tensorboard").glob("events.out.tfevents.*"))


def test_wandb_gets_every_row_of_every_seed(tmp_path, monkeypatch):
    logged = []
    run = types.SimpleNamespace(log=logged.append, finish=lambda: logged.append("finished"))
    module = types.SimpleNamespace(init=lambda **settings: run)
    monkeypatch.setitem(sys.modules, "wandb", module)
    writer = writers.WandbWriter(RunFolder(tmp_path), toy.config())
    writer.write({"stage": "first", "step": 4, "seconds": 1.0, "train/loss": [1.0, 2.0]})
    writer.close()
    assert logged[0]["first/train/loss/seed1"] == 2.0
    assert logged[0]["first/step"] == 4
    assert logged[1] == "finished"


def test_a_missing_extra_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = toy.config().model_copy(update={"training": LoopConfig(writers=("wandb",))})
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(MissingExtraError, match=r"pip install 'jaxmethods\[wandb\]'"):
        runner.run(toy.recipe(), config, folder)
    assert not folder.path.exists()


def test_a_mesh_of_more_devices_than_there_are_is_refused_before_anything_is_made(tmp_path):
    config = toy.config(mesh=MeshConfig(data=64))
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match="needs more than"):
        runner.run(toy.recipe(), config, folder)
    assert not folder.path.exists()


def test_a_written_page_has_its_tables_and_paragraphs(tmp_path):
    """Tables of `table.md` stay apart, empty cells stay where they are."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    table = "| a | b | c |\n| --- | --- | --- |\n| x | | 1 |"
    (folder.path / "table.md").write_text(
        f"{table}\n\nBoth < 2.\n\n{table}\n\n- one\n- two\n  lines\n"
    )
    page = pages.markdown((folder.path / "table.md").read_text())
    assert page.count("<table>") == 2
    assert "---" not in page
    assert "<p>Both &lt; 2.</p>" in page
    assert "<ul><li>one</li><li>two\n  lines</li></ul>" in page
    assert "<tr><td>x</td><td class=number></td><td class=number>1</td></tr>" in page
