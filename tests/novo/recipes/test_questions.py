"""From a file of questions to a report on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxmethods import cli
from jaxmethods.models import decoder
from jaxmethods.novo.recipes import questions as evaluate
from tests.models.decoder.decoders import LLAMA, random_params
from tests.same_numbers import check_same_numbers

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "novo" / "multiple_choice.yaml"
SHARED = Path(os.environ.get("JAXMETHODS_SHARED", "absent")) / "data" / "mcq"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    config = LLAMA.model_copy(update={"vocab_size": 259, "max_positions": 2048, "layers": 2})
    decoder.save(path, config, random_params(config))
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        choices = [f"Answer {word}" for word in rng.choice(1000, 3, replace=False)]
        choices += choices[:1] if number % 3 == 0 else []
        rows.append({"question": f"Which, {number}?", "choices": choices, "label": number % 3})
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(model, data, out, *more):
    chosen = ["--selection.samples", "8", "--selection.q", "0.5", "--draws", "3", "--quiet"]
    where = ["--model", str(model), "--data", str(data), "--out", str(out)]
    return ["run", str(CONFIG), *where, "--tokenizer", "bytes", *chosen, *more]


def numbers(out):
    """Name to number of a run's one stage."""
    metrics = json.loads((out / "result.json").read_text())["stages"]["questions"]["metrics"]
    return {name: value["mean"] for name, value in metrics.items()}


@pytest.mark.slow
def test_a_report_and_its_numbers(tmp_path, model, questions):
    out = tmp_path / "out"
    assert cli.main(arguments(model, questions, out)) == 0
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("config.yaml", "environment.json", "figures", "heads.json", "predictions.jsonl"),
        *("report.html", "result.json", "metrics.jsonl", "parts"),
    }
    assert "voting_heads_by_layer.png" in {path.name for path in (out / "figures").iterdir()}
    check_same_numbers(out)
    result = numbers(out)
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert result["questions"] == len(rows) == 16
    assert result["accuracy"] == pytest.approx(np.mean([row["correct"] for row in rows]))
    assert result["accuracy_95_low"] <= result["accuracy"] <= result["accuracy_95_high"]
    assert result["equal_candidates"] == 8
    voters = result["voters_max"] + result["voters_min"]
    assert {sum(row["votes"]) for row in rows} == {voters}

    again = tmp_path / "again"
    heads = ["--heads", str(out / "heads.json")]
    assert cli.main(arguments(model, questions, again, *heads)) == 0
    every = [json.loads(line) for line in (again / "predictions.jsonl").read_text().splitlines()]
    by_id = {row["id"]: row["votes"] for row in every}
    assert len(by_id) == 24
    assert all(by_id[row["id"]] == row["votes"] for row in rows)


@pytest.mark.slow
def test_what_was_scored_is_not_scored_again(tmp_path, model, questions, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCHES_PER_PART", 1)
    tokens = ["--batch_tokens", "200"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert cli.main(arguments(model, questions, whole, *tokens)) == 0
    score_batches, scored = evaluate.score_batches, []

    def fails_at_the_third(*args, first, **options):
        scored.append(first)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score_batches(*args, first=first, **options)

    monkeypatch.setattr(evaluate, "score_batches", fails_at_the_third)
    assert cli.main(arguments(model, questions, stopped, *tokens)) == 130
    assert cli.main(arguments(model, questions, stopped, *tokens)) == 2  # not without --resume
    assert cli.main(arguments(model, questions, stopped, *tokens, "--resume")) == 0
    assert scored[:3] == [0, 1, 2]
    assert scored[3:] == list(range(2, max(scored) + 1))
    for name in ("predictions.jsonl", "heads.json"):
        assert (stopped / name).read_text() == (whole / name).read_text()
    assert numbers(stopped) == numbers(whole)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokenizer", "model"], "holds no tokenizer.json"),
        (["--selection.samples", "24"], "selection.samples: expected fewer than the 24 questions"),
        (["--prompt.question", "Q {ask}"], "prompt.question: expected fields among {question}"),
        (["--norms.layers", "[1, 3]"], "norms.layers: expected a range within the 2 layers"),
        (["--heads", "absent.json"], "heads absent.json: cannot be read"),
        (["--selection.q", "1.0"], "no head votes"),
        (["--modell", "x"], "modell: unknown field (did you mean 'model'?)"),
        (["--method", "nov"], "unknown method 'nov' (did you mean 'novo'?)"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, model, questions, capsys, more, message):
    assert cli.main(arguments(model, questions, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_model_without_the_tokens_or_positions_is_named(tmp_path, questions, capsys):
    config = LLAMA.model_copy(update={"vocab_size": 100})
    decoder.save(tmp_path / "small", config, random_params(config))
    assert cli.main(arguments(tmp_path / "small", questions, tmp_path / "out")) == 2
    assert "the tokenizer does not fit the model" in capsys.readouterr().err
    config = LLAMA.model_copy(update={"vocab_size": 259, "max_positions": 20})
    decoder.save(tmp_path / "short", config, random_params(config))
    assert cli.main(arguments(tmp_path / "short", questions, tmp_path / "out")) == 2
    assert "questions-0000: " in (error := capsys.readouterr().err)
    assert "are more than the model's 20 positions" in error


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the question sets are not here")
@pytest.mark.parametrize("name", ["truthfulqa_mc1", "cicero2_val_single"])
def test_real_questions_run_to_the_end(tmp_path, model, name):
    instruction = "--prompt.instruction", "Think of the real world, and of nothing else. " * 4
    more = ["--limit", "60", "--likelihood", "false", *instruction]
    assert cli.main(arguments(model, SHARED / f"{name}.jsonl", tmp_path / "out", *more)) == 0
    result = numbers(tmp_path / "out")
    assert result["questions"] == 52
    assert 0 <= result["accuracy"] <= 1
    assert result["tokens"] < result["tokens_one_row_each"] / 2
    assert result["programs"] <= 12
