"""The synthesized world: every sentence can be said, and meanings are what they are."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmethods.lsm import grammar, synthesizer
from jaxmethods.lsm.augmentation import keep_response


def test_every_sentence_can_be_said():
    for one in grammar.sentences():
        assert set(synthesizer.pronounce(one.text)) <= set(synthesizer.PHONEMES)
    with pytest.raises(ValueError, match="'xylophone' has no pronunciation"):
        synthesizer.pronounce("play xylophone")


def test_words_sound_different():
    said = [synthesizer.PRONUNCIATIONS[word] for word in grammar.spoken_words()]
    same = {sound for sound in said if said.count(sound) > 1}
    assert same == {"tu"}  # to, too


def test_held_back_sentences_have_known_words():
    heard, others = grammar.split_sentences(0, 0.2)
    assert not {one.text for one in heard} & {one.text for one in others}
    words = {word for one in heard for word in one.text.split()}
    assert {word for one in others for word in one.text.split()} <= words


def test_right_answers_pass_the_filter_and_are_words():
    vocabulary = grammar.vocabulary()
    for one in grammar.sentences()[:40]:
        for kind in grammar.KINDS:
            answer = grammar.answer(one, kind)
            assert keep_response(answer)
            assert vocabulary.decode(vocabulary.encode(f"{answer} </s> play")) == answer


def test_a_voice_is_repeatable_and_voices_differ():
    def say(voice, seed=0, **settings):
        rng = np.random.default_rng(seed)
        return synthesizer.speak("play some jazz", voice, rng, **settings).wave

    first = say(synthesizer.TRAINED[0])
    np.testing.assert_array_equal(first, say(synthesizer.TRAINED[0]))
    assert first.dtype == np.float32
    assert np.abs(first).max() == pytest.approx(0.5, abs=1e-3)
    other = say(synthesizer.TRAINED[3])
    assert len(other) != len(first) or not np.allclose(other, first)
    noisy = say(synthesizer.TRAINED[0], noise_db=12.0)
    assert np.sqrt(np.mean(noisy[:200] ** 2)) > 2 * np.sqrt(np.mean(first[:200] ** 2))


def test_pitch_is_the_voices():
    """The strongest period of a vowel is that of the pulses."""
    voice = synthesizer.Voice(200, 1.0, 0.0, 0.3)
    wave = synthesizer.speak("i", voice, np.random.default_rng(1)).wave
    middle = wave[len(wave) // 3 : len(wave) // 3 + 1600]
    lags = np.arange(50, 200)
    strength = [np.dot(middle[:-lag], middle[lag:]) for lag in lags]
    hertz = 16_000 / lags[int(np.argmax(strength))]
    assert hertz == pytest.approx(200, rel=0.15)


def test_what_is_said_when_is_the_text():
    said = synthesizer.speak("play rock", synthesizer.TRAINED[0], np.random.default_rng(0))
    assert len(said.wave) == len(said.sounds) * synthesizer.HOP
    changes = np.flatnonzero(np.diff(said.sounds, prepend=-1))
    spoken = "".join(synthesizer.SYMBOLS[number] for number in said.sounds[changes])
    assert spoken == f" {synthesizer.pronounce('play rock')} "
