"""Rotation angles against their formulas in NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models.decoder.config import RopeScaling
from jaxmethods.models.decoder.rope import inverse_frequencies, rotation
from tests.models.decoder.decoders import LLAMA

SIZE, LONGEST = LLAMA.rotary_dim, 16


def frequencies(theta):
    return theta ** (-np.arange(0, SIZE, 2) / SIZE)


def scaled(**options):
    scaling = RopeScaling(**options)
    return LLAMA.model_copy(update={"rope_scaling": scaling, "max_positions": LONGEST})


def test_linear_scaling_divides_the_angles():
    found = inverse_frequencies(scaled(kind="linear", factor=3))
    np.testing.assert_allclose(found, frequencies(LLAMA.rope_theta) / 3, rtol=1e-6)


def test_llama3_keeps_short_waves_divides_long_ones_and_blends_between():
    """A wave fits the original context (context f / 2 pi) times; 1 and 4 are the limits."""
    plain = frequencies(LLAMA.rope_theta)
    context = 128
    turns = context * plain / (2 * np.pi)
    found = inverse_frequencies(scaled(kind="llama3", factor=8, original_max_positions=context))
    smooth = (turns - 1) / (4 - 1)
    blend = (1 - smooth) * plain / 8 + smooth * plain
    expected = np.where(turns > 4, plain, np.where(turns < 1, plain / 8, blend))
    assert ((turns > 1) & (turns < 4)).any()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("length", [1, LONGEST, LONGEST + 1, 3 * LONGEST])
def test_dynamic_scaling_grows_the_base_with_what_exceeds_the_context(length):
    """theta (s n / N - (s - 1))^(r / (r - 2)) for n > N tokens, theta itself up to N."""
    factor = 2.0
    stretch = factor * max(length, LONGEST) / LONGEST - (factor - 1)
    theta = LLAMA.rope_theta * stretch ** (SIZE / (SIZE - 2))
    angles = np.arange(length)[:, None] * frequencies(theta)
    config = scaled(kind="dynamic", factor=factor)
    cos, sin = rotation(config, jnp.arange(length)[None])
    np.testing.assert_allclose(cos[0], np.cos(angles), atol=2e-5)
    np.testing.assert_allclose(sin[0], np.sin(angles), atol=2e-5)
