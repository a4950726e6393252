"""The synthesized world through a config: what generation reads, equal beginnings, a whole run."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import jaxmethods
from jaxmethods import registry
from jaxmethods.config import ConfigError
from jaxmethods.lsm import grammar
from jaxmethods.lsm.config import SpeechTextRun
from jaxmethods.lsm.recipes import tuning, world, writing
from jaxmethods.lsm.recipes.listening import HEARD
from jaxmethods.models import decoder
from tests.diagnosis import check_diagnosable
from tests.objectives import check_objectives

SMALL = {"width": 8, "heads": 2, "mlp_width": 8, "steps": 2, "batch": 2}
TUNE = {"steps": 2, "warmup": 1, "batch": 2}
KINDS = ("repetition", "intent", "keyword", "sentiment")
CONFIG = {
    "method": "lsm",
    "seeds": 2,
    "speech": {"train": 6, "judged": 4},
    "listener": SMALL | {"layers": 1, "n_mels": 8},
    "writer": SMALL | {"layers": 1},
    "connector": {
        "qformer": {"width": 8, "heads": 2, "mlp_width": 8, "layers": 1, "dropout": 0.0},
        "policy": "fixed",
        "window": 30,
    },
    "students": [
        {"title": "vanilla", "transcripts": 1, "generated": {}, "tune": TUNE},
        {"title": "self_powered", "generated": dict.fromkeys(KINDS, 1), "tune": TUNE},
        {
            "title": "adapted",
            "transcripts": 1,
            "generated": {"intent": 1},
            "tune": TUNE | {"trains": "lora"},
        },
    ],
    "lora_scales": [0, 0.5],
    "new_tokens": 12,
    "listened": 2,
    "training": {"log_every": 1, "evaluate_every": 2, "checkpoint_every": 2},
}
RUN = SpeechTextRun.model_validate(CONFIG)


def results():
    """Of the stages before generation, as if they had run."""
    config = writing.writer_config(RUN)
    keys = jax.random.split(jax.random.key(0), RUN.seeds)
    spoken = world.Spoken(
        np.zeros((6, 8, 300), np.float16),
        np.full(6, 100, np.int32),
        np.ones((6, 150), np.int32),
        np.arange(6, dtype=np.int32),
        np.zeros((2, 10), np.int16),
    )
    return {
        world.SPEECH: {world.TRAIN: spoken},
        writing.WRITER: jax.vmap(lambda key: decoder.init_params(key, config))(keys),
        HEARD: {world.TRAIN: np.zeros((2, 6, 150, 8), np.float16)},
    }


class Anywhere:
    """A place that leaves arrays where they are."""

    mesh = None

    def __call__(self, tree, layout):
        return tree


@pytest.fixture(scope="module")
def generated():
    stage = writing.generated_stage(RUN)
    parts = stage.parts(results(), Anywhere())
    return stage.finish([part.compute() for part in parts])


def test_generation_reads_no_right_answer(generated, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a right answer was read")

    monkeypatch.setattr(grammar, "answer", refuse)
    stage = writing.generated_stage(RUN)
    part = stage.parts(results(), Anywhere())[0]
    again = stage.finish([part.compute()] * 4)
    assert again["repetition"].texts == generated["repetition"].texts


def test_answers_are_the_language_models(generated):
    config = writing.writer_config(RUN)
    own = generated["intent"]
    params = jax.tree.map(lambda leaf: leaf[1], results()[writing.WRITER])
    sentence = world.material(RUN.speech).sentences[3]
    prompt = world.WORDS.encode(grammar.TEMPLATE.render_text_prompt(own.wordings[3], sentence.text))
    found = decoder.generate(
        params, config, np.asarray([prompt]), new_tokens=RUN.new_tokens, end=world.WORDS.end
    )
    assert own.texts[1][3] == world.WORDS.decode(found.tokens[0].tolist())


def test_what_is_dropped_is_counted(generated):
    written = generated["intent"]
    dropped = writing.counts(RUN, {"intent": written})
    np.testing.assert_array_equal(dropped["dropped"], (~written.kept).sum(1))
    assert dropped["rows"].tolist() == [6, 6]


def test_answers_that_did_not_end_are_dropped():
    end, stop, word = (world.WORDS.encode(text)[0] for text in ("</s>", ".", "jazz"))
    rows = [[word, stop, end, 0], [word, end, 0, 0], [word, word, word, word], [end, 0, 0, 0]]
    tokens, lengths = np.asarray([rows]), np.asarray([[3, 2, 4, 1]])
    run = RUN.model_copy(update={"compat_filter": False})
    found = writing.judged(run, "intent", {"tokens": tokens, "lengths": lengths})
    assert found.kept.tolist() == [[True, False, False, False]]
    strict = run.model_copy(update={"shortest": 6})
    found = writing.judged(strict, "intent", {"tokens": tokens, "lengths": lengths})
    assert not found.kept.any()


def test_students_begin_alike_and_learn_from_their_own_rows(generated):
    known = results() | {
        writing.GENERATED: {
            kind: own._replace(kept=np.ones_like(own.kept)) for kind, own in generated.items()
        }
    }
    vanilla, powered, both = (tuning.data_of(RUN, one, known) for one in RUN.students)
    np.testing.assert_array_equal(*map(jax.random.key_data, (vanilla.key, powered.key)))
    assert vanilla.weights.shape == (2, 6)
    assert powered.weights.shape == (2, 24)
    assert both.weights.shape == (2, 12)
    said = world.WORDS.decode(vanilla.text.suffix[0, 2, 2:].tolist())
    assert said == f"{world.material(RUN.speech).sentences[2].text} ."
    none = {kind: own._replace(kept=0 * own.kept) for kind, own in generated.items()}
    with pytest.raises(ValueError, match="no row is left"):
        tuning.data_of(RUN, RUN.students[1], known | {writing.GENERATED: none})


def test_text_tasks_are_learned_from_their_answers_alone():
    tokens = world.text_tasks(RUN.speech)
    row = 7
    said = np.asarray(tokens.ids[row])[np.asarray(tokens.mask[row])].tolist()
    sentence = world.material(RUN.speech).sentences[0]
    kind = list(grammar.KINDS)[row // 2]
    assert world.WORDS.decode(said) == grammar.answer(sentence, kind)
    assert said[-1] == world.WORDS.end


def test_a_student_that_learns_from_nothing_is_refused():
    given = CONFIG | {"students": [{"title": "idle", "generated": {}}]}
    with pytest.raises(ConfigError, match="idle: expected a weight"):
        registry.parse(given, "test")


@pytest.mark.slow
def test_a_whole_run_and_its_report(tmp_path):
    # Long enough that answers end.
    writer = {"width": 16, "heads": 2, "mlp_width": 16, "layers": 1, "steps": 150, "batch": 16}
    run = jaxmethods.run(CONFIG | {"writer": writer}, tmp_path / "run")
    found = run.metrics["judged"]
    for title in ("vanilla", "self_powered", "adapted"):
        assert np.shape(found[f"{title}_same_voices_copy"]) == (2,)
        assert np.all(np.asarray(found[f"{title}_tokens"]) > 0)
        assert np.all(np.abs(found[f"{title}_cosine"]) <= 1)
    assert {"adapted_at_0_copy", "adapted_at_0.5_follow"} <= set(found)
    assert "vanilla_at_0_copy" not in found
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<audio controls src='data:audio/wav;base64,") == 2
    assert {"lora_scale.png", "alignment.png"} <= {
        file.name for file in (tmp_path / "run" / "figures").iterdir()
    }
    rows = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").open()]
    assert len(rows) == 3 * 2 * 5 * 2 * 4
    answer = run.ready()(np.zeros(4000, np.float32), "name the purpose")
    assert isinstance(answer, str)
    check_diagnosable(run)
    check_objectives(run, stages=("vanilla",))
