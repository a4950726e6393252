"""Distilled sets as files: what is read is what was written, and nothing else passes for it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxmethods.errors import DataError
from jaxmethods.obd.recipes import distilled_files as distilled
from jaxmethods.offline_rl.types import Norm
from tests.obd import small

NORM = Norm(np.linspace(-1, 1, small.S), np.linspace(0.5, 2, small.S))


@pytest.fixture
def saved(tmp_path):
    data = tmp_path / "data.npz"
    data.write_bytes(b"the dataset")
    path = tmp_path / "syn.npz"
    distilled.save(path, small.syn(), NORM, small.CONFIG, seed=3, outer_steps=7, source=data)
    return path


def change_card(path, **fields):
    card = json.loads(distilled.card_path(path).read_text())
    distilled.card_path(path).write_text(json.dumps(card | fields))


def test_a_set_survives_its_files(saved):
    found = distilled.load(saved, source=saved.with_name("data.npz"))
    np.testing.assert_array_equal(found.syn.states, small.syn().states)
    np.testing.assert_array_equal(found.syn.actions, small.syn().actions)
    np.testing.assert_allclose(found.norm.std, NORM.std, rtol=1e-6)
    assert found.card["objective"] == "avpbc"
    assert (found.card["seed"], found.card["outer_steps"]) == (3, 7)
    with np.load(saved) as arrays:
        raw = arrays["states_raw"]
    np.testing.assert_allclose(found.norm.apply(raw), found.syn.states, rtol=1e-4, atol=1e-5)


def test_every_flipped_byte_of_the_arrays_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    for place in np.linspace(0, len(content) - 1, 25).astype(int):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        saved.write_bytes(damaged)
        with pytest.raises(DataError, match="the arrays are not those of the card"):
            distilled.load(saved)


def test_arrays_of_another_set_are_refused(saved):
    other = saved.with_name("other.npz")
    moved = small.syn()._replace(actions=small.syn().actions + 1)
    distilled.save(other, moved, NORM, small.CONFIG, seed=4, outer_steps=7)
    saved.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match="or the files of two sets"):
        distilled.load(saved)


def test_a_set_of_other_data_is_refused(saved):
    other = saved.with_name("other_data.npz")
    other.write_bytes(b"another dataset")
    with pytest.raises(DataError, match=r"was made of data.npz .* not of .*other_data.npz"):
        distilled.load(saved, source=other)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 99}, "card of version 99, this library reads 1"),
        ({"format": "something"}, "is not the card of a distilled set"),
        ({"source": "data.npz"}, "source: expected an object or null"),
        ({"pairs": 5}, r"expected sizes \(5, 5, 2\) as in the card, got \(6, 5, 2\)"),
    ],
)
def test_a_card_that_does_not_fit_is_refused(saved, fields, reason):
    change_card(saved, **fields)
    with pytest.raises(DataError, match=reason):
        distilled.load(saved)


def test_missing_and_broken_cards_are_refused(saved):
    card = distilled.card_path(saved)
    text = card.read_text()
    card.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"syn.json cannot be read"):
        distilled.load(saved)
    card.unlink()
    with pytest.raises(DataError, match=r"its card syn.json is missing"):
        distilled.load(saved)


def test_sets_that_are_not_finite_are_not_written(tmp_path):
    wrong = small.syn()._replace(actions=small.syn().actions * np.nan)
    with pytest.raises(DataError, match="actions: expected finite numbers"):
        distilled.save(tmp_path / "syn.npz", wrong, NORM, small.CONFIG, seed=0, outer_steps=0)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_minari_is_described_by_its_data(tmp_path):
    data = tmp_path / "D4RL-1" / "main_data.hdf5"
    data.parent.mkdir()
    data.write_bytes(b"the dataset")
    assert distilled.describe_file(data.parent) == distilled.describe_file(data)
