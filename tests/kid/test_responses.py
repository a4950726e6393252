"""Whose responses a step learns from: shares, the replay's rule, first in first out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.kid.config import ReplayConfig, SourceConfig
from jaxmethods.kid.responses import (
    Responses,
    begin_replay,
    choose_responses,
    replayed,
    validated,
    with_responses,
)
from tests.kid.small import R, make_batch

GOLD = make_batch()
ROWS = len(GOLD.prompts)
OWN, TAUGHT = (
    Responses(jnp.full((ROWS, R), token, jnp.int32), jnp.asarray(lengths))
    for token, lengths in ((20, [6, 1, 3, 2]), (21, [2, 2, 2, 6]))
)


def write(prompts, mask, key):
    del mask, key
    return jax.tree.map(lambda leaf: leaf[: len(prompts)], OWN)


def chosen(key=0, **shares):
    taught = TAUGHT if shares.get("teacher") else None
    return choose_responses(jax.random.key(key), GOLD, taught, write, SourceConfig(**shares))


def test_responses_count_up_to_their_end_which_is_never_masked():
    batch = with_responses(GOLD, OWN)
    np.testing.assert_array_equal(batch.response_mask.sum(1), OWN.lengths)
    np.testing.assert_array_equal(batch.maskable.sum(1), OWN.lengths - 1)
    assert (batch.response_mask >= batch.maskable).all()
    assert batch.response_mask.dtype == GOLD.response_mask.dtype


@pytest.mark.parametrize(("shares", "token"), [({"student": 1.0}, 20), ({"teacher": 1.0}, 21)])
def test_a_share_of_one_is_every_batch(shares, token):
    for key in range(3):
        batch, own = chosen(key, **shares)
        assert (batch.responses == token).all()
        assert own == shares.get("student", 0)


def test_whole_batches_come_in_their_shares():
    batches = [chosen(key, student=0.5, teacher=0.25)[0].responses for key in range(60)]
    firsts = np.asarray([batch[0, 0] for batch in batches])
    assert abs((firsts == 20).mean() - 0.5) < 0.2
    assert abs((firsts == 21).mean() - 0.25) < 0.2
    assert all((batch == batch[0, 0]).all() for batch in batches if batch[0, 0] in (20, 21))


def test_rows_come_in_their_shares():
    batch, own = chosen(student=0.5, teacher=0.25, unit="row")
    tokens = batch.responses
    assert (tokens[:2] == 20).all()
    assert (tokens[2] == 21).all()
    np.testing.assert_array_equal(tokens[3], GOLD.responses[3])
    np.testing.assert_array_equal(batch.response_mask[3], GOLD.response_mask[3])
    assert own == 0.5
    odd = jax.tree.map(lambda leaf: leaf[:3], (GOLD, TAUGHT))
    halves = SourceConfig(student=0.5, teacher=0.5, unit="row")
    batch, own = choose_responses(jax.random.key(0), *odd, write, halves)
    assert np.isin(batch.responses, (20, 21)).all(), "no row is left"
    assert abs(own - 0.5) < 0.2


def test_the_teachers_share_needs_its_responses():
    with pytest.raises(ValueError, match="the teacher's responses are needed"):
        choose_responses(jax.random.key(0), GOLD, None, write, SourceConfig(teacher=0.5))


CONFIG = ReplayConfig(capacity=6, validate_every=2, margin=0.1, increase=0.5)


def at_step(replay, step, loss):
    return validated(replay, jnp.int32(step), lambda: jnp.float32(loss), CONFIG)


def test_the_threshold_grows_where_the_loss_has_risen_since_it_last_did():
    replay = at_step(begin_replay(CONFIG, R), 0, 1.0)
    assert (replay.threshold, replay.loss) == (0, 1.0)
    assert at_step(replay, 1, 9.0) == replay, "not the time to look"
    kept = at_step(replay, 2, 1.05)
    assert (kept.threshold, kept.loss) == (0, 1.0), "less than the margin"
    grown = at_step(kept, 4, 1.2)
    np.testing.assert_allclose((grown.threshold, grown.loss), (0.5, 1.2))
    back = at_step(grown, 6, 0.5)
    assert back.loss == grown.loss, "a loss that falls isn't compared with"
    assert at_step(at_step(back, 8, 2), 10, 3).threshold == 1


def take(replay, share_done, key=0):
    rows = jnp.arange(ROWS)
    return replayed(jax.random.key(key), GOLD, rows, GOLD, replay, write, jnp.float32(share_done))


def test_what_is_written_is_kept_first_in_first_out_and_seen_again():
    replay = begin_replay(CONFIG, R)
    batch, same, own = take(replay, 0.0)
    np.testing.assert_array_equal(batch.responses, GOLD.responses)
    assert (own, same.size) == (0, 0)
    replay = replay._replace(threshold=jnp.float32(1.0))
    batch, replay, own = take(replay, 1.0)
    assert own == 1, "while there is room, also at the end"
    assert (batch.responses == 20).all()
    assert (replay.size, replay.place) == (4, 4)
    batch, replay, own = take(replay, 1.0)
    assert (replay.size, replay.place, own) == (6, 2, 1)
    np.testing.assert_array_equal(replay.rows, [2, 3, 2, 3, 0, 1])
    batch, after, own = take(replay, 1.0)
    assert own == 0, "full, and no step left: a kept one"
    assert (batch.responses == 20).all()
    np.testing.assert_array_equal(after.rows, replay.rows)
    lengths = {int(one): int(length) for one, length in enumerate(OWN.lengths)}
    for prompt, mask in zip(batch.prompts, batch.response_mask, strict=True):
        (place,) = np.flatnonzero((GOLD.prompts == prompt).all(1))
        assert mask.sum() == lengths[int(place)], "beside the prompt that it answers"


def test_shares_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a sum of at most 1"):
        SourceConfig(student=0.7, teacher=0.7)
    with pytest.raises(ValueError, match="expected null with shares"):
        SourceConfig(student=0.5, replay=CONFIG)
