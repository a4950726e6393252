"""A user's own recordings through a config: what is heard, written, learned, answered, dropped."""

from __future__ import annotations

import json
from collections import Counter

import jax
import numpy as np
import pytest

import jaxmethods
from jaxmethods import registry
from jaxmethods.config import ConfigError
from jaxmethods.data import audio
from jaxmethods.errors import UserError
from jaxmethods.lsm.prompts import padded
from jaxmethods.lsm.recipes.recordings import augmenting, hearing, judging, rows, tuning, verdicts
from jaxmethods.lsm.recipes.recordings.config import RecordingsRun
from jaxmethods.lsm.recipes.recordings.models import Models
from jaxmethods.models import decoder
from tests.diagnosis import check_diagnosable
from tests.lsm.recipes import folders
from tests.objectives import check_objectives

TUNE = {"steps": 2, "warmup": 1, "batch": 2, "micro_batches": 1}


class Anywhere:
    """A place that leaves arrays where they are."""

    mesh = None

    def __call__(self, tree, layout):
        return tree


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models and six recordings."""
    pytest.importorskip("tokenizers")
    found = tmp_path_factory.mktemp("recordings")
    folders.write_whisper(found / "whisper")
    folders.write_language_model(found / "decoder")
    folders.write_recordings(found)
    return found


def config(place, **changes):
    """A run that compiles in a moment."""
    given = {
        "method": "lsm_recordings",
        "data": {"train": str(place / "all.jsonl"), "hold_out": 0.34},
        "speech": {"path": str(place / "whisper"), "batch": 2},
        "language": {"path": str(place / "decoder"), "template": "plain"},
        "connector": {
            "qformer": {"width": 8, "heads": 2, "mlp_width": 8, "layers": 1, "dropout": 0.0}
        },
        "augment": {"new_tokens": 6, "batch": 2, "longest_prompt": 64, "punctuated": False},
        "students": [
            {
                "title": "vanilla",
                "transcripts": 1,
                "generated": {},
                "tune": TUNE | {"trains": "connector"},
            },
            {
                "title": "powered",
                "generated": {"intent": 1, "sentiment": 1},
                "tune": TUNE | {"trains": "lora"},
            },
        ],
        "lora_scales": [0.5],
        "judging": {
            "new_tokens": 6,
            "batch": 2,
            "kinds": ["transcription", "intent", "sentiment"],
            "attributed": 2,
        },
        "training": {"log_every": 1, "evaluate_every": 2, "checkpoint_every": 2},
    }
    for name, value in changes.items():
        given[name] = {**given[name], **value} if isinstance(value, dict) else value
    return given


def prepared(place, **changes):
    run = RecordingsRun.model_validate(config(place, **changes))
    return Models(run), rows.read_rows(run.data)


def computed(stage, results):
    return stage.finish([part.compute() for part in stage.parts(results, Anywhere())])


@pytest.fixture(scope="module")
def heard(place):
    models, known = prepared(place)
    return computed(hearing.heard_stage(models, known), {})


def test_frames_are_those_of_the_recordings_true_length(heard):
    train = heard[rows.TRAIN]
    assert train.lengths.tolist() == [5, 7, 8, 9]  # 20 ms each; the last was 2800 samples
    assert train.frames.shape == (4, 9, 8)
    assert not train.frames[0, 5:].any()
    assert train.frames[0, :5].any()
    assert heard[rows.JUDGED].rows.tolist() == [0, 1]
    assert heard[rows.JUDGED].lengths[1] == 12  # in two pieces


def test_a_recording_does_not_depend_on_the_recordings_beside_it(place, heard):
    models, known = prepared(place)
    alone = hearing.hear(models, known.splits[rows.TRAIN][2:3], False)
    np.testing.assert_array_equal(alone["frames"], heard[rows.TRAIN].frames[2, :8])


@pytest.fixture(scope="module")
def generated(place, heard):
    models, known = prepared(place)
    return computed(augmenting.generated_stage(models, known), {hearing.HEARD: heard})


def test_answers_are_the_language_models_and_do_not_depend_on_batch_or_labels(
    place, heard, generated
):
    lines = [json.loads(line) for line in (place / "all.jsonl").open()]
    wrong = [line | {"intent": "wrong", "sentiment": "wrong"} for line in lines]
    (place / "wrong.jsonl").write_text("".join(json.dumps(line) + "\n" for line in wrong))
    data = {"train": str(place / "wrong.jsonl")}
    models, known = prepared(place, data=data, augment={"batch": 3})
    again = computed(augmenting.generated_stage(models, known), {hearing.HEARD: heard})
    for kind in ("intent", "sentiment"):
        assert again[kind].texts == generated[kind].texts
        np.testing.assert_array_equal(again[kind].kept, generated[kind].kept)


@pytest.fixture(scope="module")
def many(place, heard):
    """What 30 transcripts are asked, two at a time."""
    models, _ = prepared(place)
    known = [rows.Row("", None, ("go left", "stop", "go right")[n % 3], ()) for n in range(30)]
    train = heard[rows.TRAIN]._replace(rows=np.arange(30))
    found = rows.Rows({rows.TRAIN: known}, {})
    stage = augmenting.generated_stage(models, found)
    return models, known, stage, {hearing.HEARD: {rows.TRAIN: train}}


def test_answers_in_slots_are_those_of_single_decoding_in_fewer_steps(many):
    models, known, stage, results = many
    part = stage.parts(results, Anywhere())[0].compute()
    wordings = augmenting.wordings_of(models, "intent", 30, augmenting.GENERATED)
    params = models.read_language()
    single = jax.jit(
        lambda ids, mask: decoder.generate(
            params, models.language, ids, mask=mask, new_tokens=6, end=models.ends, pad=models.end
        )
    )
    for row, wording in enumerate(wordings[: len(part["lengths"])]):
        prompt = models.text_prompt(wording, known[row].text)
        alone = single(*padded([prompt], models.end, 64))
        np.testing.assert_array_equal(part["tokens"][row], alone.tokens[0])
    lengths = part["lengths"]
    assert len(set(lengths.tolist())) > 1
    assert part["steps"] < np.maximum(lengths[::2], lengths[1::2]).sum() - len(lengths) / 2


def test_a_stopped_augmentation_goes_on_with_the_parts_that_are_missing(place, heard):
    models, known = prepared(place)
    stage = augmenting.generated_stage(models, known)
    parts = stage.parts({hearing.HEARD: heard}, Anywhere())
    assert [part.name for part in parts] == ["intent-000000", "sentiment-000000"]
    whole = [part.compute() for part in parts]
    rest = stage.parts({hearing.HEARD: heard}, Anywhere())[1].compute()
    for name, array in rest.items():
        np.testing.assert_array_equal(array, whole[1][name])


@pytest.mark.parametrize(
    ("ids", "text", "changes", "why"),
    [
        ([3, 2], "go.", {}, None),
        ([3, 4], "go.", {}, augmenting.CUT),
        ([3, 2], "go", {}, augmenting.UNPUNCTUATED),
        ([3, 2], "go", {"punctuated": False}, None),
        ([3, 2], " ", {"punctuated": False}, augmenting.LENGTH),
        ([3, 2], "go.", {"shortest": 6}, augmenting.LENGTH),
        ([3, 3, 3, 2], "go.", {"longest": 3}, augmenting.LENGTH),
    ],
)
def test_answers_are_dropped_by_a_reason(place, ids, text, changes, why):
    settings = RecordingsRun.model_validate(config(place)).augment
    settings = settings.model_copy(update={"punctuated": True} | changes)
    assert augmenting.refusal(settings, ids, text, 2) == why


def test_long_prompts_are_dropped_and_counted(place, heard):
    models, known = prepared(place, augment={"longest_prompt": 4})
    stage = augmenting.generated_stage(models, known)
    found = computed(stage, {hearing.HEARD: heard})
    assert found["intent"].dropped == Counter({augmenting.LONG_PROMPT: 4})
    assert stage.metrics(found)["dropped"] == 8


def test_students_begin_alike_and_learn_from_rows_that_were_kept(place, heard, generated):
    models, known = prepared(place)
    results = {hearing.HEARD: heard, augmenting.GENERATED: generated}
    vanilla, powered = (tuning.data_of(models, known, one, results) for one in models.run.students)
    np.testing.assert_array_equal(*map(jax.random.key_data, (vanilla.key, powered.key)))
    assert vanilla.clips.tolist() == [0, 1, 2, 3]
    said = vanilla.text.suffix[0][vanilla.text.labels[0] >= 0].tolist()
    assert models.decode([said]) == ["go left"]
    assert said[-1] == models.end
    kept = [np.flatnonzero(generated[kind].kept) for kind in ("intent", "sentiment")]
    assert powered.clips.tolist() == np.concatenate(kept).tolist()
    assert 0 < len(powered.clips) < 8  # some answers of an untaught model never end


def test_own_wordings_take_the_place_of_ours(place, tmp_path):
    file = tmp_path / "wordings.json"
    file.write_text(json.dumps({"intent": ["go or stop ?"]}))
    models, _ = prepared(place, augment={"wordings": str(file)})
    assert models.wordings["intent"] == ("go or stop ?",)
    assert len(models.wordings["sentiment"]) == 5
    assert "into German" in models.wordings["translation"][0]
    for content, message in (
        ("{", "is not valid JSON"),
        ('{"intent": []}', "kinds and lists of texts"),
        ('{"mood": ["a"]}', "expected kinds among continuation, .* got 'mood'"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            prepared(place, augment={"wordings": str(file)})


# What users bring


def wav(place, name, samples):
    (place / name).write_bytes(audio.wav_bytes(samples))
    return name


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Recordings that can't be used, and some that look so. Name -> the row and why it is dropped;
    None: it is heard."""
    soundfile = pytest.importorskip("soundfile")
    place = tmp_path_factory.mktemp("bad")
    noise = folders.noise(16_000)
    soundfile.write(place / "nan.wav", np.append(noise, np.nan), 16_000, subtype="FLOAT")
    soundfile.write(place / "cut.flac", noise, 16_000)
    (place / "cut.flac").write_bytes((place / "cut.flac").read_bytes()[:9000])
    (place / "text.wav").write_text("This is not audio.")
    given = {
        "silence": (wav(place, "silence.wav", np.zeros(4000)), None),
        "20 ms": (wav(place, "short.wav", noise[:320]), None),
        "10 minutes": (wav(place, "long.wav", np.tile(noise, 600)), "lasts 600.0 s, more than"),
        "NaN": ("nan.wav", "samples are not finite"),
        "cut off": ("cut.flac", "cut.flac: (cannot be read|is cut off)"),
        "text": ("text.wav", "text.wav: cannot be read"),
        "past the end": (f"{wav(place, 'a.wav', noise)}:15000:2000", "within its 16000 samples"),
        "missing": ("missing.wav", "no such file"),
    }
    rows = {name: ({"audio": file, "text": "go"}, why) for name, (file, why) in given.items()}
    rows["no audio"] = ({"text": "go"}, "line 1: .* got no audio")
    rows["no text"] = ({"audio": "a.wav"}, "line 1: .* got no text")
    rows["no object"] = (["a.wav"], "line 1: .* got no audio")
    return place, rows


NAMES = (
    *("silence", "20 ms", "10 minutes", "NaN", "cut off", "text", "past the end", "missing"),
    *("no audio", "no text", "no object"),
)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_used_is_one_line_and_what_can_is_heard(place, bad, name):
    folder, known = bad
    row, why = known[name]
    data = {"train": str(folder / "one.jsonl"), "judged": str(place / "all.jsonl")}
    (folder / "one.jsonl").write_text(json.dumps(row))

    def hear():
        models, found = prepared(place, data=data)
        return hearing.hear(models, found.splits[rows.TRAIN], False)

    if why is None:
        heard = hear()
        assert heard["lengths"][0] == {"silence": 13, "20 ms": 1}[name]
        assert np.isfinite(heard["frames"]).all()
        return
    with pytest.raises(UserError, match=why) as caught:
        hear()
    assert "\n" not in str(caught.value)


def test_what_cannot_be_used_is_counted_where_the_config_says_so(place, bad):
    folder, known = bad
    lines = [json.dumps(row) + "\n" for row, _ in known.values()]
    (folder / "all.jsonl").write_text("".join(lines))
    data = {"train": str(folder / "all.jsonl"), "judged": str(place / "all.jsonl")}
    models, found = prepared(place, data=data | {"skip_unusable": True})
    assert found.dropped[rows.TRAIN] == Counter({rows.NO_AUDIO: 2, rows.NO_TEXT: 1})
    heard = computed(hearing.heard_stage(models, found), {})[rows.TRAIN]
    assert heard.rows.tolist() == [0, 1]
    _, unreadable, too_long = hearing.REASONS
    assert heard.dropped == Counter({unreadable: 5, too_long: 1})


def test_ten_minutes_are_heard_in_pieces_where_they_may_last_so_long(place, bad):
    folder, known = bad
    (folder / "one.jsonl").write_text(json.dumps(known["10 minutes"][0]))
    data = {"train": str(folder / "one.jsonl"), "judged": str(place / "all.jsonl"), "longest": 600}
    models, found = prepared(place, data=data)
    heard = hearing.hear(models, found.splits[rows.TRAIN], False)
    assert heard["lengths"].tolist() == [30_000]
    assert np.isfinite(heard["frames"]).all()
    models.check_lengths()  # they are a few tokens


def test_an_instruction_that_is_longer_than_the_context_is_refused(place, tmp_path):
    file = tmp_path / "wordings.json"
    file.write_text(json.dumps({"intent": ["go " * 300]}))
    given = config(place, augment={"wordings": str(file)})
    with pytest.raises(UserError, match=r"instruction 'go go .*300 tokens, .* the 256 positions"):
        registry.parse(given, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": [{"title": "idle", "generated": {}}]}, "idle: expected a weight"),
        ({"augment": {"longest_prompt": 255}}, "longest_prompt: 255 tokens and 6 new ones"),
        ({"data": {"train": "missing.jsonl"}}, "missing.jsonl"),
        ({"language": {"path": "missing"}}, "missing"),
        ({"students": [{"title": "a"}, {"title": "a"}]}, "unique titles"),
        ({"students": [{"title": "cascade"}]}, "another title than 'cascade'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_heard(place, changes, message):
    with pytest.raises((ConfigError, UserError), match=message):
        registry.parse(config(place, **changes), "test")


# Verdicts


def row(**answers):
    return rows.Row("a.wav", None, "go left now", tuple(answers.items()))


def test_labels_are_contained_alone_and_key_words_are_counted():
    known = [row(intent="play_music", keyword="jazz bar"), row(intent="call", keyword="tom")]
    found = verdicts.verdicts_of(
        "intent", [["it is play music", "play music or call"]], known, str.lower
    )
    np.testing.assert_array_equal(found.follow(), [[1, 0]])
    found = verdicts.verdicts_of("keyword", [["the jazz", "Tom"]], known, str.lower)
    np.testing.assert_allclose(found.follow(), [[0.5, 1]])
    unknown = verdicts.verdicts_of("sentiment", [["go left now", "fine"]], known, str.lower)
    assert np.isnan(unknown.follow()).all()
    np.testing.assert_array_equal(unknown.copy(), [[1, 0]])


@pytest.mark.slow
def test_a_whole_run_its_report_and_its_figures(place, tmp_path):
    run = jaxmethods.run(config(place, seeds=2), tmp_path / "run")
    found = run.metrics[judging.STAGE]
    for name in ("vanilla", "powered", "powered-at-0.5"):
        assert np.shape(found[f"{name}_copy"]) == (2,)
    assert np.size(found["cascade_copy"]) == 1
    # A student whose connector alone was tuned has the language model that it began with.
    before = found["language_model_text_follow"]
    np.testing.assert_array_equal(found["vanilla_text_follow"], np.repeat(before, 2))
    folder = tmp_path / "run"
    assert run.metrics["heard"]["train_recordings"] == 4
    names = {file.name for file in (folder / "figures").iterdir()}
    assert {"copy_and_follow.png", "alignment.png", "attention_by_layer.png"} <= names
    assert {"lora_scale.png", "clip_1.wav"} <= names
    answers = [json.loads(line) for line in (folder / "answers.jsonl").open()]
    assert len(answers) == 2 * 3 * (2 * 3 + 1)
    check_diagnosable(run)
    check_objectives(run)
    kept = [json.loads(line) for line in (folder / "generated.jsonl").open()]
    assert len(kept) == 8 - run.metrics["generated"]["dropped"]
    assert set(kept[0]) == {"instruction", "audio", "text", "kind"}
    answer = run.ready()(folders.noise(4000), "go left ?")
    assert isinstance(answer, str)
    with pytest.raises(UserError, match="more than the 256 positions"):
        run.ready()(folders.noise(4000), "go " * 300)
