"""Frozen frames read by probes: summaries of a clip's own frames, judged clips have no say."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmethods
from jaxmethods.data import audio
from jaxmethods.data.log_mel import log_mel
from jaxmethods.errors import DataError
from jaxmethods.lsm.config import ProbeRun
from jaxmethods.lsm.recipes.probe import answering, linear, material
from jaxmethods.models import whisper
from tests.diagnosis import check_diagnosable
from tests.lsm.recipes.folders import RAW
from tests.objectives import check_objectives
from tests.programs import weights

PITCHES = {"low": 600, "high_up": 3000}


def wave(label, speaker, number):
    """A tone of 0.1 s; speakers differ in loudness."""
    place = np.arange(1600) / 16_000
    loud = {"ann": 0.1, "bob": 0.5}[speaker]
    return loud * np.sin(2 * np.pi * (PITCHES[label] + 20 * number) * place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Whisper of 0.2 s that has learned nothing, tones, and two manifests."""
    place = tmp_path_factory.mktemp("probe")
    config = whisper.read_config(RAW)
    params = weights(whisper.init_params, config, seed=3, scale=0.4)
    whisper.save(place / "model", RAW, config, params)
    for name, numbers in (("train", (0, 1)), ("test", (2,))):
        rows = []
        for label in PITCHES:
            for speaker in ("ann", "bob"):
                for number in numbers:
                    file = f"{label}-{speaker}-{number}.wav"
                    (place / file).write_bytes(audio.wav_bytes(wave(label, speaker, number)))
                    rows.append({"audio": file, "label": label, "speaker": speaker})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{name}.jsonl").write_text(lines)
    return place


def config(folder, **settings):
    values = {"method": "speech_probe", "model": str(folder / "model"), "group": "speaker"}
    values |= {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return values | {"penalties": [0.1]} | settings


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    return jaxmethods.run(config(folder), tmp_path_factory.mktemp("out") / "run")


@pytest.mark.slow
def test_tones_are_told_apart_also_of_speakers_that_were_left_out(finished):
    found = finished.metrics["probes"]
    assert found["own_accuracy"] == 1
    assert found["own_left_out"] == 1
    assert found["own_left_out_lowest"] == 1
    text = (finished.folder / "table.md").read_text()
    assert "| ann left out | 6 | 1.000 [1.000, 1.000] |" in text
    assert "chance is 0.500" in text


@pytest.mark.slow
def test_a_summary_is_of_the_clips_own_frames(finished, folder):
    heard = finished.results[material.STAGE]
    loaded = whisper.load(folder / "model")
    clip = audio.load("low-ann-1.wav", folder=folder)
    given = audio.pad_or_trim(clip, loaded.config.features.n_samples)[0]
    features = log_mel(given[None], loaded.config.features)
    encoder = loaded.params["encoder"]
    last = np.asarray(
        jax.jit(whisper.encode, static_argnums=1)(encoder, loaded.config.encoder, features).last[0]
    )
    np.testing.assert_allclose(heard.frames[1], last[:5], atol=2e-3)
    own = np.concatenate([last[:5].mean(0), last[:5].max(0)])
    np.testing.assert_allclose(heard.own[1], own, atol=1e-4)
    everything = np.concatenate([last.mean(0), last.max(0)])
    np.testing.assert_allclose(heard.all[1], everything, atol=1e-4)
    assert np.abs(own - everything).max() > 0.01


def test_a_probe_can_be_diagnosed_and_is_the_one_that_judged(finished):
    check_diagnosable(finished)
    found = finished.diagnosable()
    features, labels = found.held_out
    right = np.argmax(found.apply(found.params, features), axis=1) == labels
    np.testing.assert_array_equal(right, finished.results["probes"].right["own"]["test"])


def test_no_split_learns_from_what_it_judges(finished, folder):
    run = ProbeRun.model_validate(config(folder))
    clips = finished.results[material.STAGE].clips
    splits = linear.splits_of(run, clips)
    assert [split.title for split in splits] == ["test", "ann", "bob"]
    for split in splits:
        assert not set(split.train) & set(split.judged)
        assert not any(clips[place].tested for place in split.train)
    assert {clips[place].group for place in splits[1].judged} == {"ann"}
    assert {clips[place].group for place in splits[1].train} == {"bob"}


def test_labels_of_judged_clips_do_not_choose_the_penalty(finished, folder):
    run = ProbeRun.model_validate(config(folder, penalties=[1e-3, 10.0]))
    heard = finished.results[material.STAGE]
    split = linear.splits_of(run, heard.clips)[0]
    swap = {"low": "high_up", "high_up": "low"}
    wrong = tuple(one._replace(label=swap[one.label]) if one.tested else one for one in heard.clips)
    own, other = (
        linear.probe(run, heard._replace(clips=clips), "own", split)
        for clips in (heard.clips, wrong)
    )
    assert own["penalty"] == other["penalty"]
    assert own["validated"] == other["validated"]
    np.testing.assert_array_equal(own["right"], ~other["right"])


def test_folds_are_groups_or_equal_parts(folder):
    run = ProbeRun.model_validate(config(folder, folds=3))
    clip = material.Clip("a.wav", Path(), "low", "ann", tested=False)
    groups = [clip, clip._replace(group="bob"), clip]
    assert linear.folds_of(run, groups).tolist() == [0, 1, 0]
    assert sorted(linear.folds_of(run, [clip] * 6).tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not valid JSON"),
        ('{"audio": "a.wav"}', "line 2: expected an object with the fields audio, label, speaker"),
        ('{"audio": "a.wav", "label": "new", "speaker": "ann"}', "has the label 'new'"),
        ("", "holds no clips"),
    ],
)
def test_a_manifest_that_is_none_is_one_line(folder, tmp_path, line, message):
    (tmp_path / "m.jsonl").write_text("\n" + line)
    with pytest.raises(DataError, match=message):
        jaxmethods.run(config(folder, test=str(tmp_path / "m.jsonl")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_clips_that_cannot_be_heard_are_counted_or_an_error(folder):
    bad = folder / "text.wav"
    bad.write_text("no audio")
    clips = [
        material.Clip(name, folder, "low", "ann", tested=False)
        for name in ("low-ann-0.wav", "text.wav")
    ]
    with pytest.raises(DataError, match="cannot be read"):
        material.hear(ProbeRun.model_validate(config(folder)), clips)
    run = ProbeRun.model_validate(config(folder, skip_unreadable=True))
    part = material.hear(run, clips)
    found = material.heard_stage(run, clips).finish([part])
    assert found.skipped == 1
    assert [one.reference for one in found.clips] == ["low-ann-0.wav"]
    assert len(found.frames[0]) == 5


def test_answers_are_labels_in_words(finished):
    clips = finished.results[material.STAGE].clips
    words = answering.words_of(clips)
    text = answering.asked(words, ["low", "high up"])
    said = [words.decode(row[row >= 0].tolist()) for row in text.labels]
    assert said == ["low", "high up"]
    assert (text.labels >= 0).sum(1).tolist() == [2, 3]


@pytest.mark.slow
def test_an_answerer_learns_to_name_tones(folder, tmp_path):
    small = {"width": 8, "heads": 2, "mlp_width": 16, "layers": 1}
    answerer = small | {
        "connector": {"qformer": small | {"dropout": 0.0}, "policy": "fixed", "window": 3},
        "tune": {"steps": 200, "batch": 8, "warmup": 10, "learning_rate": 1e-2},
    }
    run = jaxmethods.run(config(folder, answerer=answerer, seeds=2), tmp_path / "run")
    found = run.metrics["answered"]
    assert np.shape(found["accuracy"]) == (2,)
    assert np.mean(found["accuracy"]) > 0.7
    assert np.mean(found["left_out"]) > 0.5
    assert "answers in words" in (tmp_path / "run" / "table.md").read_text()
    check_diagnosable(run)
    check_objectives(run, stages=("answerer",))


@pytest.mark.parametrize(
    ("heard", "message"),
    [
        ({"train": (0, 1), "test": ()}, "expected a clip that can be heard, got none"),
        ({"train": (0,), "test": (0,)}, "expected clips of two labels or more, got 1"),
        ({"train": (0, 1), "test": (2,)}, "has the label 'other'"),
    ],
)
def test_what_is_left_of_the_clips_must_be_enough(folder, heard, message):
    labels = ["low", "high", "other"]
    clips = [
        material.Clip("a.wav", folder, labels[number], "", split == "test")
        for split, numbers in heard.items()
        for number in numbers
    ]
    with pytest.raises(DataError, match=message):
        material.check_labels(ProbeRun.model_validate(config(folder)), clips)
