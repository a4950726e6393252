"""Windows of clips: which policies depend on the batch, and what padding becomes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.lsm.windows import cut_windows, window_plan


def frames(batch=2, length=100):
    return jax.random.normal(jax.random.key(0), (batch, length, 3))


def valid(windows, row):
    """The frames of each window of a clip."""
    there = windows.frame_mask
    own = np.asarray(windows.frames[row])
    found = []
    for number in np.flatnonzero(np.asarray(windows.mask[row])):
        keep = slice(None) if there is None else np.asarray(there[row, number])
        found.append(own[number][keep])
    return found


@pytest.mark.parametrize("length", [1, 20, 45, 46, 90, 134, 135, 200, 781, 1500])
def test_a_clips_own_windows_follow_the_rule(length):
    encoded = frames(1, 1500)
    found = cut_windows(encoded, jnp.asarray([length]), "per_clip")
    plan = window_plan(length)
    own = valid(found, 0)
    assert len(own) == plan.windows
    expected = encoded[0, : plan.windows * plan.kernel].reshape(plan.windows, plan.kernel, 3)
    np.testing.assert_array_equal(np.stack(own), expected)


@pytest.mark.parametrize("policy", ["per_clip", "fixed"])
def test_the_clips_beside_do_not_matter(policy):
    encoded, lengths = frames(2, 100), jnp.asarray([100, 37])
    together = cut_windows(encoded, lengths, policy, window=4)
    alone = cut_windows(encoded[1:, :37], lengths[1:], policy, window=4)
    for one, other in zip(valid(together, 1), valid(alone, 0), strict=True):
        np.testing.assert_array_equal(one, other)


def test_reference_windows_follow_the_longest_clip():
    encoded, lengths = frames(2, 781), jnp.asarray([781, 90])
    found = cut_windows(encoded, lengths, "reference")
    assert found.frames.shape[1:3] == (86, 9)
    assert found.mask.sum(1).tolist() == [86, 10]


def test_fixed_windows_hide_frames_behind_the_clip():
    found = cut_windows(frames(1, 10), jnp.asarray([5]), "fixed", window=4)
    assert found.frames.shape[1] == 3
    assert found.mask.tolist() == [[True, True, False]]
    assert found.frame_mask.sum(2).tolist() == [[4, 1, 0]]
    assert cut_windows(frames(1, 1500), jnp.asarray([1500]), "fixed").frames.shape[1:3] == (89, 17)


def test_a_clip_without_frames_has_no_window():
    for policy in ("per_clip", "fixed", "reference"):
        found = cut_windows(frames(1, 60), jnp.asarray([0]), policy, window=4)
        assert not found.mask.any()


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="policy: expected reference, per_clip or fixed"):
        cut_windows(frames(), jnp.asarray([1, 1]), "other")
    with pytest.raises(ValueError, match="encoded: expected at least one frame"):
        cut_windows(frames(1, 0), jnp.asarray([0]), "fixed")
