"""Whose responses a step learns from: gold, the teacher's, the student's, or kept ones.

On-policy distillation (GKD, arXiv 2306.13649) lets the student write the responses that it is then
compared with its teacher on; ImitKD and f-distill do so with a part of them. DistiLLM (arXiv
2402.03898) keeps what the student wrote and shows it again. Its share phi of such batches begins at
0 and grows whenever the loss of held-back examples has risen; with r ~ U(0, 1) and a share s of the
steps done, a batch is

    written now   where r < phi (1 - s), or r < phi while there is room for more
    a kept one    where r < phi otherwise
    gold          where r >= phi

Generation is a loop on the device that is not begun where nobody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.kid.config import ReplayConfig, SourceConfig
from jaxmethods.kid.loss import Batch
from jaxmethods.numerics.keys import named
from jaxmethods.numerics.lazily import when


class Responses(NamedTuple):
    """What somebody has answered to prompts."""

    ids: jax.Array
    """[N, R] int32."""
    lengths: jax.Array
    """[N] int32: tokens of each, its end included."""


class Replay(NamedTuple):
    """What the student has written, and how often it is shown such responses."""

    rows: jax.Array
    """[C] int32: the example that each answers."""
    kept: Responses
    """[C, R] and [C]."""
    size: jax.Array
    """[] int32: how many there are."""
    place: jax.Array
    """[] int32: where the next one is kept."""
    threshold: jax.Array
    """[] float32: phi."""
    loss: jax.Array
    """[] float32: of held-back examples, when phi last changed."""


Write = Callable[[jax.Array, jax.Array, jax.Array], Responses]
"""(prompts [B, P], mask [B, P], typed key) -> the student's responses."""


def with_responses(batch: Batch, responses: Responses) -> Batch:
    """The batch with other responses; the last token of each is never masked."""
    place = jnp.arange(responses.ids.shape[1])
    counted = place < responses.lengths[:, None]
    return batch._replace(
        responses=responses.ids.astype(batch.responses.dtype),
        response_mask=counted.astype(batch.response_mask.dtype),
        maskable=(place < responses.lengths[:, None] - 1).astype(batch.maskable.dtype),
    )


def choose_responses(
    key: jax.Array, gold: Batch, taught: Responses | None, write: Write, config: SourceConfig
) -> tuple[Batch, jax.Array]:
    """A batch with responses of the student and the teacher in their shares.

    Args:
        key: typed random key.
        gold: the batch.
        taught: the teacher's responses to its prompts; None without a share of the teacher.
        write: generates the student's.
        config: static.

    Returns:
        the batch, and the share of its rows that the student wrote, [] float32.

    Raises:
        ValueError: a share of the teacher without its responses.
    """
    if config.teacher and taught is None:
        raise ValueError("taught: the teacher's responses are needed for a share of them")
    size = gold.prompts.shape[0]
    key, coin = named(key, "write"), named(key, "whose")
    if config.unit == "row":
        return _by_row(key, gold, taught, write, config, size)
    draw = jax.random.uniform(coin)
    own = draw < config.student
    batch = gold
    if taught is not None and config.teacher:
        by_teacher = (draw >= config.student) & (draw < config.student + config.teacher)
        batch = _where(by_teacher | (config.teacher == 1.0), with_responses(gold, taught), batch)
    if config.student == 0:
        return batch, jnp.float32(0)
    nothing = Responses(jnp.zeros(gold.responses.shape, jnp.int32), jnp.zeros(size, jnp.int32))
    asked = own | (config.student == 1.0)  # a float that is drawn may round to 1
    written = when(asked, lambda: write(gold.prompts, gold.prompt_mask, key), nothing)
    batch = _where(asked, with_responses(gold, written), batch)
    return batch, asked.astype(jnp.float32)


def _by_row(
    key: jax.Array,
    gold: Batch,
    taught: Responses | None,
    write: Write,
    config: SourceConfig,
    size: int,
) -> tuple[Batch, jax.Array]:
    """The first rows are the student's, the next ones the teacher's: rows come in no order."""
    own = round(size * config.student)
    # Rounded together: of halves of five rows none is left for the gold response.
    theirs = round(size * min(config.student + config.teacher, 1.0)) - own
    batch = gold
    place = jnp.arange(size)
    if theirs:
        assert taught is not None
        among = (place >= own) & (place < own + theirs)
        batch = _where(among, with_responses(gold, taught), batch)
    if own:
        written = write(gold.prompts[:own], gold.prompt_mask[:own], key)
        filled = jax.tree.map(
            lambda leaf: jnp.pad(leaf, [(0, size - own), *[(0, 0)] * (leaf.ndim - 1)]), written
        )
        batch = _where(place < own, with_responses(gold, filled), batch)
    return batch, jnp.float32(own / size)


def begin_replay(config: ReplayConfig, length: int) -> Replay:
    """Nothing is kept yet; `length`: R."""
    count = config.capacity
    return Replay(
        rows=jnp.zeros(count, jnp.int32),
        kept=Responses(jnp.zeros((count, length), jnp.int32), jnp.zeros(count, jnp.int32)),
        size=jnp.int32(0),
        place=jnp.int32(0),
        threshold=jnp.float32(0),
        loss=jnp.float32(jnp.inf),
    )


def validated(
    replay: Replay, step: jax.Array, loss: Callable[[], jax.Array], config: ReplayConfig
) -> Replay:
    """Looks at the loss of held-back examples where it is time.

    Args:
        replay: as it was.
        step: [] int32, done so far; the first look, at 0, is what later ones are compared with.
        loss: () -> [] float32, computed where it is time.
        config: static.

    Returns:
        phi raised, and the loss replaced, where the loss has risen by the margin.
    """
    due = step % config.validate_every == 0
    found = when(due, loss, replay.loss)
    risen = due & (step > 0) & (found >= replay.loss + config.margin)
    threshold = jnp.minimum(replay.threshold + config.increase, 1.0)
    return replay._replace(
        threshold=jnp.where(risen, threshold, replay.threshold),
        loss=jnp.where(risen | (due & (step == 0)), found, replay.loss),
    )


def replayed(
    key: jax.Array,
    gold: Batch,
    rows: jax.Array,
    examples: Batch,
    replay: Replay,
    write: Write,
    share_done: jax.Array,
) -> tuple[Batch, Replay, jax.Array]:
    """A batch that is gold, written now and kept, or taken from what is kept.

    Args:
        key: typed random key.
        gold: examples `rows` [B].
        rows: their places among all examples.
        examples: all of them.
        replay: what is kept; at least B places.
        write: generates the student's responses.
        share_done: [] of the steps.

    Returns:
        the batch, what is kept then, and the share of rows the student wrote in this step.
    """
    size, capacity = gold.prompts.shape[0], replay.rows.shape[0]
    draw = jax.random.uniform(named(key, "whose"))
    own = draw < replay.threshold * (1 - share_done)
    own |= (draw < replay.threshold) & (replay.size < capacity)
    again = (draw < replay.threshold) & ~own
    nothing = Responses(jnp.zeros(gold.responses.shape, jnp.int32), jnp.zeros(size, jnp.int32))
    generate_key = named(key, "write")
    written = when(own, lambda: write(gold.prompts, gold.prompt_mask, generate_key), nothing)

    picked = jax.random.randint(named(key, "again"), (size,), 0, jnp.maximum(replay.size, 1))
    answered = jax.tree.map(lambda leaf: leaf[replay.rows[picked]], examples)
    seen = with_responses(answered, jax.tree.map(lambda leaf: leaf[picked], replay.kept))
    batch = _where(own, with_responses(gold, written), _where(again, seen, gold))

    places = (replay.place + jnp.arange(size)) % capacity

    def keep(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[places].set(jnp.where(own, new, old[places]))

    grown = jnp.where(own, size, 0)
    after = replay._replace(
        rows=keep(replay.rows, rows.astype(jnp.int32)),
        kept=jax.tree.map(keep, replay.kept, written),
        size=jnp.minimum(replay.size + grown, capacity),
        place=(replay.place + grown) % capacity,
    )
    return batch, after, own.astype(jnp.float32)


def _where(chosen: jax.Array, one: Any, other: Any) -> Any:
    """Leaves of one tree or the other; `chosen` is [] or [B]."""

    def pick(a: jax.Array, b: jax.Array) -> jax.Array:
        shape = chosen.shape + (1,) * (a.ndim - chosen.ndim) if chosen.ndim else ()
        return jnp.where(chosen.reshape(shape), a, b)

    return jax.tree.map(pick, one, other)
