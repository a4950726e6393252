"""Merging on eight devices."""

from tests.on_eight_devices import assert_passes_on_eight_devices


def test_eight_devices_give_the_models_of_one():
    assert_passes_on_eight_devices("tests/merging/eight_devices.py")
