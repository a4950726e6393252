"""Bias from outside: copies, answers that follow, sensitivity."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxmethods.lsm import behavior
from jaxmethods.numerics.statistics import bootstrap_interval


def test_the_transcript_is_a_copy_also_with_a_wrong_word():
    said = ["play some jazz now", "play some rock now", "music", ""]
    transcripts = ["play some jazz now"] * 4
    found = behavior.copies(said, transcripts, ["music"] * 4)
    assert found.tolist() == [1, 1, 0, 0]


def test_where_the_right_answer_is_a_copy_nothing_is_counted():
    found = behavior.copies(["six", "six"], ["six", "go on"], ["six", "go"])
    assert np.isnan(found[0])
    assert found[1] == 0


def test_answers_that_do_not_depend_on_the_instruction_have_no_sensitivity():
    assert behavior.sensitivity([["a b", "c"]] * 3).tolist() == [0, 0]
    assert behavior.sensitivity([["a b"], ["c d"]]).tolist() == [1]
    assert behavior.sensitivity([["", "a"], ["", "b"]]).tolist() == [0, 1]


def test_exactly_one_label_must_occur():
    labels = ["play_music", "weather"]
    assert behavior.contains_one_label("i think play music", labels, "play_music")
    assert not behavior.contains_one_label("play music or weather", labels, "weather")
    assert not behavior.contains_one_label("playing musical", labels, "play_music")
    nested = ["play", "play_music", "music"]
    assert behavior.contains_one_label("i think play music", nested, "play_music")
    assert not behavior.contains_one_label("play music or play", nested, "play_music")


def test_forgetting_is_relative():
    assert behavior.forgetting(0.5, 1.0) == -0.5
    assert math.isnan(behavior.forgetting(0.5, 0.0))


def test_numbers_of_texts_must_be_equal():
    with pytest.raises(ValueError, match="answers: expected as many texts everywhere"):
        behavior.follows(["a"], [])
    with pytest.raises(ValueError, match="two instructions or more"):
        behavior.sensitivity([["a"]])


def test_an_interval_holds_the_mean_at_its_level():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        found = bootstrap_interval(rng.normal(1.0, 1.0, 40), seed, draws=400)
        held += found.low <= 1.0 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_values_that_are_none_are_left_out():
    found = bootstrap_interval(np.asarray([[1.0, np.nan], [0.0, 0.0]]))
    assert found.mean == pytest.approx(1 / 3)
    assert math.isnan(bootstrap_interval(np.asarray([np.nan])).mean)


def test_key_words_are_counted_as_often_as_they_occur():
    assert behavior.word_f1("jazz bar", "bar jazz") == 1
    assert behavior.word_f1("jazz jazz", "jazz bar") == 0.5
    assert behavior.word_f1("the jazz bar of tom", "jazz") == pytest.approx(2 / 6)
    assert behavior.word_f1("", "jazz") == behavior.word_f1("tom", "jazz") == 0
