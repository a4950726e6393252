"""Speech tokens beside transcripts: what is equal is 1, what has nothing in common is 0."""

from __future__ import annotations

import numpy as np

from jaxmethods.lsm.transcripts.alignment import align, cka_interval


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_tokens_behind_the_masks_do_not_count():
    speech, text = draw(0, 2, 5, 4), draw(1, 2, 3, 4)
    heard, said = np.arange(5) < [[3], [5]], np.arange(3) < [[1], [3]]
    found = align(speech, heard, text, said)
    for row, (count, words) in enumerate([(3, 1), (5, 3)]):
        own, others = speech[row, :count], text[row, :words]
        np.testing.assert_allclose(found.speech[row], own.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.text[row], others.mean(0), rtol=1e-5)
        lengths = np.linalg.norm(own, axis=1), np.linalg.norm(others, axis=1)[:, None]
        cosines = others @ own.T / lengths[0] / lengths[1]
        np.testing.assert_allclose(found.cosine[row], cosines.max(1).mean(), rtol=1e-5)


def test_likeness_is_one_for_turned_tokens_and_about_zero_for_noise():
    text = draw(0, 2, 40, 6) + 5
    turned = 3 * text @ np.linalg.qr(draw(1, 6, 6))[0]
    same = cka_interval(turned, text)
    np.testing.assert_allclose(same, 1, atol=1e-3)
    noise = cka_interval(draw(2, 2, 40, 6), text)
    assert noise.low < 0.02
    assert abs(noise.mean) < 0.15
    assert noise.low < noise.mean < noise.high
    assert np.isnan(cka_interval(text[:, :7], text[:, :7]).mean)
