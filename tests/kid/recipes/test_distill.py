"""A whole distillation, tiny: what it leaves, resumed and on many devices; model folders."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmethods
from jaxmethods.data.tokenizer import folder_tokenizer
from jaxmethods.models import decoder
from tests.data.test_bpe import TRAINED
from tests.diagnosis import check_diagnosable
from tests.kid.recipes.test_material import model_folder
from tests.kid.recipes.tiny import DISTILLM, spider, values
from tests.objectives import check_objectives
from tests.same_numbers import check_same_numbers


def same(one, other):
    """Whether two trees hold the same bits."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in map(raw, pairs))


def raw(pair):
    """Random keys as numbers."""
    return [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in pair
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return jaxmethods.run(values(), tmp_path_factory.mktemp("kid") / "run")


def test_what_a_run_leaves(finished):
    assert [stage.name for stage in finished.recipe.stages] == ["world", "teacher", "kid", "judged"]
    table = (finished.folder / "table.md").read_text()
    assert table.startswith("Precondition: the teacher answers")
    assert "| kid | " in table
    assert "Executed by SQLite" in table
    lines = (finished.folder / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 2 * (3 + 2 + 2)
    judged = finished.metrics["judged"]
    assert judged["kid_same_execution"].shape == (1,)
    assert judged["kid_same_ended"] <= 1
    assert {path.stem for path in (finished.folder / "figures").glob("*.png")} == {
        "execution_accuracy"
    }


def test_the_student_is_a_model_folder(finished):
    folder = finished.folder / "students" / "kid"
    config, params = decoder.load(folder)
    own = jax.tree.map(lambda leaf: leaf[0], finished.results["kid"].params)
    assert same(params, own)
    assert config.vocab_size == 300
    pytest.importorskip("tokenizers")
    tokenizer = folder_tokenizer(folder)
    assert (tokenizer.begin, tokenizer.end) == (1, 2)
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.generation_config.eos_token_id == words.eos_token_id == 2
    assert words("SELECT name")["input_ids"] == [1, *tokenizer.encode(["SELECT name"])[0]]


def test_the_student_can_be_diagnosed(finished):
    check_diagnosable(finished)


@pytest.mark.slow
def test_a_monitor_shows_what_teacher_and_student_go_down_on(finished):
    check_objectives(finished)


REPLAYED = values(
    students=[DISTILLM],
    fit={"steps": 4, "batch": 4, "learning_rate": 1.0},
    training={"log_every": 1, "evaluate_every": 4, "checkpoint_every": 1},
)
"""DistiLLM keeps what its student wrote; so large a rate makes the loss rise, so that it writes."""

KILLED = """
import os, signal, sys
import jaxmethods
from jaxmethods.training.checkpoints import Checkpoints
from tests import programs
from tests.kid.recipes.test_distill import REPLAYED

programs.compile_fast()
save = Checkpoints.save

def save_and_die(self, step, *rest):
    save(self, step, *rest)
    if step == 3 and "distillm" in str(self.path(step)):
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = save_and_die
jaxmethods.run(REPLAYED, sys.argv[1])
"""


def test_console_report_and_result_carry_the_same_numbers(finished):
    check_same_numbers(finished.folder)


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits_with_what_the_student_wrote(tmp_path):
    """The process dies (SIGKILL) behind a checkpoint in which there are kept responses, and before
    the last of them is written."""
    whole = jaxmethods.run(REPLAYED, tmp_path / "whole")
    folder = tmp_path / "killed"
    root = Path(__file__).parents[3]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)], cwd=root, capture_output=True, text=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (folder / "results" / "distillm").exists()
    resumed = jaxmethods.run(REPLAYED, folder, resume=True)
    state = whole.state("distillm")
    assert int(state.replay.size[0]) == 4
    assert same(resumed.state("distillm"), state)
    own = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    written = [row["train/own_responses"] for row in own if "train/own_responses" in row]
    assert np.sum(written[:3]) > 0, "something was kept before the end"
    texts = [(run.folder / "answers.jsonl").read_text() for run in (whole, resumed)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_eight_devices_are_one(finished, tmp_path):
    many = jaxmethods.run(values(), tmp_path / "many", mesh={"data": 2, "fsdp": 4})
    for name in ("teacher", "kid"):
        pairs = [jax.tree.leaves(run.results[name].params) for run in (finished, many)]
        for one, other in zip(*pairs, strict=True):
            np.testing.assert_allclose(np.asarray(other), np.asarray(one), rtol=2e-3, atol=2e-4)
    kernel = many.results["kid"].params["layers"]["mlp"]["up"]["kernel"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == 4


@pytest.mark.slow
def test_model_folders_learn_with_adapters_and_open_again(tmp_path):
    """A student's additions, merged; the teacher stays as it is and is read once, then its states
    are; a student that learns from its responses, in parts."""
    pytest.importorskip("tokenizers")
    data = spider(tmp_path / "data")
    model = model_folder(tmp_path / "model", TRAINED, positions=256)
    given = values(
        data={"path": str(data), "max_input": 200, "max_output": 16},
        student={"path": str(model)},
        teacher={"path": str(model), "fit": {"steps": 0}, "cache": "float32"},
        lora={"rank": 2, "targets": ["query", "down"]},
        students=["rkd", "seqkd", {"objective": "sft", "name": "more", "begin": "rkd"}],
        fit={"micro_batches": 2},
        training={"log_every": 1},
        evaluation={"vote": 3, "exposure": 2, "exposure_samples": 3, "beams": 2, "fuzz": 1},
    )
    del given["data"]["world"]
    run = jaxmethods.run(given, tmp_path / "run")
    names = [stage.name for stage in run.recipe.stages]
    assert names == ["teacher_responses", "teacher_states", "rkd", "seqkd", "more", "judged"]
    first = next(row for row in rows_of(run) if row["stage"] == "rkd")
    assert abs(np.mean(first["train/divergence"])) < 1e-4, "student and teacher begin equal"
    config, params = decoder.load(run.folder / "students" / "rkd")
    assert same(params, jax.tree.map(lambda leaf: leaf[0], run.results["rkd"].params))
    _, base = decoder.load(model)
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, base)
    layers = changed["layers"]
    assert layers["attention"]["query"]["kernel"]
    assert layers["mlp"]["down"]["kernel"]
    assert not layers["attention"]["value"]["kernel"]
    assert not changed["embed"]["tokens"]
    assert config.max_positions == 256
    later, earlier = (run.results[name].params["layers"]["attention"] for name in ("more", "rkd"))
    assert same(later["value"], earlier["value"])
    assert not same(later["query"], earlier["query"])
    judged = run.metrics["judged"]
    assert 0 <= judged["rkd_voted_execution"][0] <= 1
    assert np.isfinite(judged["seqkd_exposure_error"]).all()
    assert 0 <= judged["rkd_fuzzed_execution"][0] <= judged["rkd_dev_execution"][0]
    assert "| TS-fuzz dev | EX by vote | ExAccErr |" in (run.folder / "table.md").read_text()


def rows_of(run):
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
