"""Reports on the command line: a network that is trained for one, and a model folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import jaxmethods
from jaxmethods import cli
from jaxmethods.interpret.measures import MEASURES
from jaxmethods.models import decoder
from tests.diagnosis import check_diagnosable
from tests.models.decoder.decoders import LLAMA, random_params
from tests.objectives import check_objectives

CONFIGS = Path(__file__).parents[3] / "configs" / "interpret"


@pytest.mark.slow
def test_digits_are_learned_and_reported_on(tmp_path):
    pytest.importorskip("sklearn.datasets")
    small = ["--steps", "60", "--hidden", "[8]", "--quiet"]
    out = tmp_path / "run"
    assert cli.main(["run", str(CONFIGS / "quickstart.yaml"), "--out", str(out), *small]) == 0
    (rows,) = json.loads((out / "diagnostics.json").read_text())
    assert set(rows) == set(MEASURES)
    assert rows["accuracy"]["value"] > 0.5
    assert "largest eigenvalue" in (out / "table.md").read_text()
    assert (out / "figures" / "spectrum_of_the_hessian.png").is_file()
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("sharpness" in name for row in metrics for name in row)
    check_diagnosable(jaxmethods.load_run(out))
    check_objectives(jaxmethods.load_run(out))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    config = LLAMA.model_copy(update={"vocab_size": 259, "max_positions": 64, "layers": 1})
    decoder.save(path, config, random_params(config))
    return path


def arguments(model, text, out, *more):
    where = ["--model", str(model), "--data", str(text), "--out", str(out)]
    sizes = ["--tokenizer", "bytes", "--tokens", "4", "--examples", "4", "--batch", "2"]
    return ["run", str(CONFIGS / "report.yaml"), *where, *sizes, "--quiet", *more]


@pytest.mark.slow
def test_a_model_folder_is_reported_on(tmp_path, model):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("What is said of a model has its error. " * 4)
    assert cli.main(arguments(model, text, out)) == 0
    (rows,) = json.loads((out / "diagnostics.json").read_text())
    assert set(rows) == {
        name for name, own in MEASURES.items() if own.needs in ("anything", "logits")
    }
    again = jaxmethods.load_run(out)
    assert again.metrics["rows"]["train_loss"] > 0


def test_texts_that_cannot_be_used_leave_nothing(tmp_path, model, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("short")
    assert cli.main(arguments(model, text, out)) == 2
    assert "expected at least 10 tokens for two sequences, got 3" in capsys.readouterr().err
    assert cli.main(arguments(model, tmp_path / "absent.txt", out)) == 2
    assert "absent.txt" in capsys.readouterr().err
    assert not out.exists()
