"""Questions as arrays, and what is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmethods
from jaxmethods import registry
from jaxmethods.config import read_yaml
from jaxmethods.data.bpe import Bpe, train_bpe
from jaxmethods.data.tokenizer import own_tokenizer
from jaxmethods.errors import UserError
from jaxmethods.kid.config import DataConfig, StudentConfig
from jaxmethods.kid.recipes.learning import batch_parts, student_stage
from jaxmethods.kid.recipes.material import Material, batch_of, shortened
from jaxmethods.kid.recipes.models import Models
from jaxmethods.kid.recipes.questions import hold_out, write_questions
from jaxmethods.models import decoder
from jaxmethods.sql.readers import Example
from tests.kid import small
from tests.kid.recipes.tiny import QUESTIONS, spider, values

CONFIGS = Path(__file__).parents[3] / "configs" / "kid"


@pytest.fixture
def folder(tmp_path):
    return spider(tmp_path / "data")


def run_of(folder, **changes):
    data = {"path": str(folder), "max_input": 200, "max_output": 40}
    return registry.parse_config(values(data=data, **changes), "test")


def texts_of(folder, **changes):
    run = run_of(folder, **changes)
    return Material(run, Models(run)).texts({})


def test_prompts_show_the_database_and_responses_end(folder):
    texts = texts_of(folder)
    train, tokenizer = texts.train, texts.tokenizer
    assert len(train.prompts) == len(QUESTIONS)
    for row, (question, query) in enumerate(QUESTIONS):
        prompt = train.prompts[row][train.prompt_mask[row]]
        assert prompt[0] == tokenizer.begin
        (text,) = tokenizer.decode([prompt])
        assert text.startswith("team ( team_id , name , city ) | player ( player_id ,")
        assert text.endswith(f"\n{question}\n")
        response = train.responses[row][train.response_mask[row]]
        assert response[-1] == tokenizer.end
        assert tokenizer.decode([response]) == [query]
        assert train.maskable[row].sum() == len(response) - 1
        assert not train.maskable[row][len(response) - 1]
        # Padding is the end token, too, and is not counted.
        assert (train.responses[row][~train.response_mask[row]] == tokenizer.end).all()
        assert (train.prompts[row][~train.prompt_mask[row]] == tokenizer.end).all()
    assert list(texts.judged) == ["dev"]
    assert texts.cut == {"prompts": 0, "responses": 0}


def test_codes_prompt_has_types_and_matched_values(folder):
    run = run_of(folder)
    data = run.data.model_copy(update={"prompt": "codes"})
    run = run.model_copy(update={"data": data})
    texts = Material(run, Models(run)).texts({})
    (prompt,) = texts.questions.prompts(texts.judged["dev"].examples[:1])
    assert prompt.startswith("database schema :\ntable team , columns = [ team.team_id ( integer")
    assert "matched contents : None\nhow many players are there\n" in prompt


def test_too_long_prompts_keep_their_first_token_and_their_end():
    data = DataConfig(max_input=4, max_output=3)
    assert shortened([1, 5, 6, 7, 8, 9], data) == [1, 7, 8, 9]
    assert shortened([1, 5, 6, 7], data) == [1, 5, 6, 7]
    batch = batch_of([[1, 5]], [[4, 5, 6, 2]], 4, data.max_output)
    np.testing.assert_array_equal(batch.prompts, [[0, 0, 1, 5]])
    np.testing.assert_array_equal(batch.responses, [[4, 5, 6]])
    np.testing.assert_array_equal(batch.maskable, [[1, 1, 0]])


def test_questions_are_held_out_whose_query_stays():
    examples = [Example(str(n), "club", None, q, sql) for n, (q, sql) in enumerate(QUESTIONS)]
    kept, held = hold_out(examples, 0.3, seed=0)
    assert (len(kept), len(held)) == (4, 2)
    assert {one.query for one in held} <= {one.query for one in kept}
    assert sorted([*kept, *held], key=lambda one: one.id) == examples
    with pytest.raises(UserError, match="a share of 1 to 2 of 6 questions"):
        hold_out(examples, 0.9, seed=0)


def test_a_judged_training_split_is_what_is_trained_on(folder):
    """Questions that are held out are neither trained on nor judged as trained on."""
    run = run_of(folder, evaluation={"questions": 3})
    data = run.data.model_copy(update={"hold_out": 0.3, "judged": ("dev", "train")})
    run = run.model_copy(update={"data": data})
    texts = Material(run, Models(run)).texts({})
    train, judged = texts.questions.splits()
    assert list(judged) == list(texts.judged) == ["held_out", "dev", "train"]
    assert len(train) == len(texts.train.prompts) == len(QUESTIONS) - 2
    assert judged["train"] == train[:3]
    assert not {one.id for one in judged["held_out"]} & {one.id for one in train}


def refused(tmp_path, **changes):
    """What a run says that is refused; it leaves nothing."""
    with pytest.raises(UserError) as caught:
        jaxmethods.run(values(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_malformed_row_is_named(folder, tmp_path):
    rows = json.loads((folder / "train.json").read_text())
    del rows[3]["query"]
    (folder / "train.json").write_text(json.dumps(rows))
    message = refused(tmp_path, data={"path": str(folder)})
    assert "train.json: row 3" in message
    (folder / "train.json").write_text("[{")
    assert "train.json" in refused(tmp_path, data={"path": str(folder)})


def test_a_missing_database_is_named(folder, tmp_path):
    rows = json.loads((folder / "dev.json").read_text())
    rows[1]["db_id"] = "nowhere"
    (folder / "dev.json").write_text(json.dumps(rows))
    message = refused(tmp_path, data={"path": str(folder)})
    assert "row 1" in message
    assert "nowhere" in message


def test_an_empty_split_is_named(folder, tmp_path):
    (folder / "dev.json").write_text("[]")
    assert "dev.json" in refused(tmp_path, data={"path": str(folder)})


def test_a_world_that_has_fewer_questions_is_named(tmp_path):
    run = registry.parse_config(values(data={"world": {"combine": 500}}), "test")
    with pytest.raises(UserError, match=r"data.world: sizes.combine: expected fewer than 500"):
        write_questions(run, tmp_path / "world")
    assert not list((tmp_path / "world").iterdir())


def test_students_see_the_first_questions(folder):
    run = run_of(folder, fit={"batch": 2, "questions": 3})
    models = Models(run)
    material = Material(run, models)
    stage = student_stage(run, models, material, StudentConfig(objective="sft"))
    examples = stage.data({}).data.examples
    assert examples.prompts.shape[0] == 3
    np.testing.assert_array_equal(examples.prompts, material.texts({}).train.prompts[:3])
    message = "questions: expected at least the 4 of a batch, got 3"
    with pytest.raises(UserError, match=message):
        run_of(folder, fit={"batch": 4, "questions": 3})


def test_chunks_of_logits_are_those_of_a_device():
    """The chunk that a loss sees has the tokens of all devices that its batch is split over."""

    def parts(rows, **changes):
        run = registry.parse_config(values(**changes), "test")
        return batch_parts(run, run.fit.model_copy(update={"batch": rows}))

    assert parts(8) == 1
    assert parts(8, mesh={"data": 4}) == 4
    assert parts(6, mesh={"data": 4}) == 1  # not split: every device has the batch
    assert parts(8, mesh={"data": 4}, seeds=8) == 1  # seeds are split
    assert parts(8 * jax.device_count(), mesh={"data": -1}) == jax.device_count()


def test_more_rows_than_questions_are_refused(folder, tmp_path):
    message = refused(tmp_path, data={"path": str(folder)}, fit={"batch": 7})
    assert "fit.batch: expected at most the 6 questions of the split 'train', got 7" in message


def model_folder(path, bpe, vocabulary=300, positions=64):
    config = small.CONFIG.model_copy(update={"vocab_size": vocabulary, "max_positions": positions})
    params = small.params_of(config, 0)
    decoder.save(path, config, params)
    for name, text in own_tokenizer(bpe).files.items():
        (path / name).write_text(text)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"eos_token_id": 2}))
    return path


def test_models_that_do_not_fit_are_refused(folder, tmp_path):
    pytest.importorskip("tokenizers")
    one = model_folder(tmp_path / "one", train_bpe(["ab ab"], 262), positions=512)
    two = model_folder(tmp_path / "two", train_bpe(["cd cd"], 262), positions=512)
    short = model_folder(tmp_path / "short", Bpe(()))
    base = {"data": {"path": str(folder)}}
    message = refused(tmp_path, **base, student={"path": str(one)}, teacher={"path": str(two)})
    assert "tokenizers: expected equal ones" in message
    message = refused(tmp_path, **base, student={"path": str(short)})
    assert "112 tokens are more than the 64 positions" in message
    message = refused(tmp_path, **base, lora={"rank": 2})
    assert "lora: expected null for a new model" in message
    message = refused(
        tmp_path, **base, student={"path": str(one)}, lora={"rank": 2, "targets": ["head"]}
    )
    assert "targets: expected some of query" in message


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configs_are_valid_and_say_what_they_cost(file):
    text = file.read_text()
    assert text.startswith("# ")
    run = registry.parse_config(read_yaml(file), str(file))
    assert run.method == "kid"
