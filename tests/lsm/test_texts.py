"""Texts: word errors, normalizers, prompts, the filter, schedules, instructions."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmethods.lsm import augmentation, prompts
from jaxmethods.lsm.model import IGNORED
from jaxmethods.lsm.schedules import warmup_then_linear
from jaxmethods.lsm.transcripts.normalize import normalize_english, normalizer_of
from jaxmethods.lsm.transcripts.word_errors import corpus_errors, edit_errors, word_errors

words = st.lists(st.sampled_from("abc"), max_size=6)


@given(words, words)
def test_errors_are_a_way_from_one_text_to_the_other(reference, hypothesis):
    found = edit_errors(reference, hypothesis)
    assert found.insertions - found.deletions == len(hypothesis) - len(reference)
    assert min(found) >= 0
    assert found.substitutions + found.deletions <= len(reference)
    assert (found.total == 0) == (reference == hypothesis)
    back = edit_errors(hypothesis, reference)
    assert (back.total, back.deletions) == (found.total, found.insertions)


@given(words, words, words)
def test_errors_are_a_distance(one, two, three):
    direct = edit_errors(one, three).total
    assert direct <= edit_errors(one, two).total + edit_errors(two, three).total


def test_rates():
    assert word_errors("", "").rate == 0
    assert word_errors("", "a").rate == 1
    assert word_errors("a b", "a c d").rate == 1
    assert corpus_errors(["a b", "c"], ["a", "c"]).rate == pytest.approx(1 / 3)
    assert corpus_errors([], []).words == 0
    with pytest.raises(ValueError, match="hypotheses: expected 1, got 2"):
        corpus_errors(["a"], ["a", "b"])


@given(st.text(alphabet="ab1 2$.%,'é-", max_size=12))
def test_normalized_text_has_single_spaces_and_no_capitals(text):
    found = normalize_english(text)
    assert "  " not in found
    assert found == found.lower()


@pytest.mark.parametrize(
    ("language", "said", "heard", "rate"),
    [
        ("en", "Um, it's colour!", "it is color", 0),
        ("de", "Um acht.", "um acht", 0),
        ("de", "Um acht.", "acht", 1 / 2),  # a filler is dropped in English alone
        ("zh", "我们今天去学校。", "我们今天去学生", 1 / 7),
        ("ja", "GPUを使う", "gpuで使う", 1 / 4),
    ],
)
def test_transcripts_are_compared_in_words_of_their_language(language, said, heard, rate):
    normalize = normalizer_of(language)
    assert word_errors(normalize(said), normalize(heard)).rate == pytest.approx(rate)


@pytest.mark.parametrize("mark", "।؟።»")
def test_answers_end_in_the_punctuation_of_their_script(mark):
    assert augmentation.keep_response(f"a{mark} ")
    assert not augmentation.keep_response("a")


def encode(text):
    """A first token, then letters."""
    return [1, *(ord(letter) for letter in text)]


def test_a_response_is_learned_and_its_tag_is_not():
    template = prompts.Template("Q {instruction} S", " A:", "{instruction} {transcript}")
    row = prompts.render("do", "x", encode, template=template, end="!")
    assert row.prefix == encode("Q do S")
    assert row.suffix == encode(" A:")[1:] + encode("x!")[1:]
    assert row.labels == [IGNORED] * 3 + [ord("x"), ord("!")]


def test_a_first_token_stands_once():
    template = prompts.LLAMA3

    def llama(text):
        ids = [7, *(ord(letter) for letter in text.removeprefix("<|begin_of_text|>"))]
        return [7, *ids] if text.startswith("<|begin_of_text|>") else ids

    row = prompts.render("do", "x", llama, template=template)
    assert row.prefix.count(7) == 1


def test_the_published_limits_drop_short_answers_and_ours_do_not():
    labels = [IGNORED, 5, 2]
    assert not prompts.keeps_length(labels)
    assert prompts.keeps_length(labels, shortest=1)
    assert not prompts.keeps_length(labels, shortest=1, longest=1)


def test_rows_are_padded_behind():
    ids, there = prompts.padded([[1, 2], []], 0, 3)
    assert ids.tolist() == [[1, 2, 0], [0, 0, 0]]
    assert there.sum(1).tolist() == [2, 0]
    with pytest.raises(ValueError, match="at least the longest row's 2"):
        prompts.padded([[1, 2]], 0, 1)


def test_every_kind_has_five_wordings_of_its_own():
    wordings = [one for five in augmentation.INSTRUCTIONS.values() for one in five]
    assert len(wordings) == len(set(wordings)) == 35


def test_kinds_are_drawn_by_weight():
    rng = np.random.default_rng(0)
    kinds, numbers = augmentation.draw_kinds(rng, 4000, {"intent": 3, "keyword": 1, "sentiment": 0})
    assert set(kinds) == {"intent", "keyword"}
    assert kinds.count("intent") / kinds.count("keyword") == pytest.approx(3, rel=0.15)
    assert set(numbers) == set(range(5))
    for mixture in ({}, {"intent": 0}, {"intent": -1, "keyword": 2}):
        with pytest.raises(ValueError, match="mixture: expected weights"):
            augmentation.draw_kinds(rng, 1, mixture)
    with pytest.raises(ValueError, match="mixture: expected some of"):
        augmentation.draw_kinds(rng, 1, {"poetry": 1})


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_a_warmup_rises_to_the_peak_and_falls_to_nothing(kind):
    rate = warmup_then_linear(2.0, 10, 50, kind)
    values = [float(rate(step)) for step in range(60)]
    assert values[0] == 0
    assert values[10] == 2
    assert values[9] == pytest.approx(2.0 if kind == "log" else 1.8)
    assert values[30] == pytest.approx(1)
    assert values[50:] == [0] * 10
    assert float(warmup_then_linear(2.0, 0, 4, kind)(0)) == 2
    assert math.isfinite(float(warmup_then_linear(2.0, 1, 4, kind)(0)))


def test_a_warmup_longer_than_training_is_refused():
    with pytest.raises(ValueError, match="warmup: expected 0 to the 5 steps, got 6"):
        warmup_then_linear(1.0, 6, 5)
    with pytest.raises(ValueError, match="kind: expected log or linear"):
        warmup_then_linear(1.0, 1, 5, "cosine")  # type: ignore[arg-type]


def test_the_table_of_long_transcripts_is_never_in_memory():
    """An hour of speech has 9,000 words: a gigabyte of table, and minutes in Python's loops."""
    words = [str(number) for number in range(1500)]
    tracemalloc.start()
    found = edit_errors(words, [*words[1:], "x"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.substitutions, found.deletions, found.insertions) == (0, 1, 1)
    assert peak < 2**20
