"""The loss of a batch: divergence from the teacher on imperfect responses, and likelihood.

    L = 1/N sum_t D(q(. | x, y'_<t), p(. | x, y'_<t)) - lambda/N sum_t log q(y_t | x, y'_<t)

with prompt x, gold response y, imperfect response y' (`imperfect`), student q, frozen teacher p and
N counted tokens; KID's D is the reverse KL (arXiv 2410.11371, equation 5).

A masked, an imperfect and a clean response differ behind the prompt only, so that its keys and
values are computed once (`share_prefix`) and the student's predicting pass costs a response, not a
sequence. Heads are applied to a few tokens at a time, [C, V]; [B, T, V] is never there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmethods.kid import imperfect
from jaxmethods.kid.config import DivergenceConfig, ImperfectConfig, KIDConfig
from jaxmethods.kid.model import LanguageModel, Params, Prefix, last_tokens
from jaxmethods.language import divergences
from jaxmethods.models.decoder import at

States = Callable[[jax.Array, jax.Array], jax.Array]
"""(response ids [B, R], which of them are seen [B, R]) -> states that predict each [B, R, D]."""


class Batch(NamedTuple):
    """Prompts and gold responses."""

    prompts: jax.Array
    """[B, P] int."""
    prompt_mask: jax.Array
    """[B, P], 0 on padding, on either side; every prompt has a token."""
    responses: jax.Array
    """[B, R] int, padded on the right."""
    response_mask: jax.Array
    """[B, R], 1 on the response's tokens, its end token included: those are counted."""
    maskable: jax.Array
    """[B, R], 1 on what may be masked: the response without its end token."""
    teacher_states: jax.Array | None = None
    """[B, R, D]: what the teacher's logits on these very responses are made of (`states_of`), where
    it was run over them before; None: it is run now."""


class Totals(NamedTuple):
    """What sums of a whole batch are divided by, where it comes in parts."""

    tokens: jax.Array
    rows: jax.Array
    """Rows that count a token."""


class Terms(NamedTuple):
    """Sums of a part of a batch over the whole batch's totals: parts' terms add up."""

    divergence: jax.Array
    likelihood: jax.Array
    """Mean of -log q(gold token)."""
    fills: jax.Array
    """Selected tokens."""
    right_fills: jax.Array
    """Those whose fill is the gold token."""


def totals(batch: Batch) -> Totals:
    """Counts what the sums of a whole batch are divided by."""
    counted = batch.response_mask.astype(bool)
    return Totals(jnp.sum(counted), jnp.sum(jnp.any(counted, axis=1)))


def kid_loss(
    student_params: Params,
    teacher_params: Params,
    batch: Batch,
    key: jax.Array,
    student: LanguageModel,
    teacher: LanguageModel | None,
    config: KIDConfig,
    whole: Totals | None = None,
) -> tuple[jax.Array, Terms]:
    """The loss of a batch, or of a part of one.

    Args:
        student_params: differentiated.
        teacher_params: frozen; unused without a divergence.
        batch: prompts and gold responses.
        key: typed random key, or one for each row [B].
        student, teacher: models whose logits have the same vocabulary; no teacher without a
            divergence.
        config: static.
        whole: of the batch that this is a part of; default: this batch is whole.

    Returns:
        loss [] float32, and its terms. A batch that counts no token has loss 0.

    Raises:
        ValueError: a divergence without a teacher, a key that fits neither, states of the teacher
            on other responses than those that are compared.
    """
    teaches = config.divergence.name != "none"
    if teaches and teacher is None:
        raise ValueError(f"teacher: is needed for the divergence {config.divergence.name!r}")
    whole = totals(batch) if whole is None else whole
    keys = imperfect.row_keys(key, batch.prompts.shape[0])
    prefix = None
    # One response alone is run with its prompt in one piece.
    if config.share_prefix and rewrites(config.imperfect):
        room = batch.responses.shape[1]
        prefix = student.prefix(student_params, batch.prompts, batch.prompt_mask, room)
    states = states_of(student, student_params, batch, prefix)
    # Parameters and prefix without a gradient, not the result: nothing is kept to differentiate.
    frozen, read = lax.stop_gradient((student_params, prefix))
    written, selected = make_imperfect(
        keys, student, frozen, states_of(student, frozen, batch, read), batch, config
    )
    everything = jnp.ones_like(selected)
    inputs = {"student": states(written, everything), "targets": batch.responses}
    if config.mle_input == "clean" and config.mle_weight and written is not batch.responses:
        inputs["clean"] = states(batch.responses, everything)
    if teaches:
        assert teacher is not None
        teacher_params = lax.stop_gradient(teacher_params)
        inputs["teacher"] = _teacher_states(teacher, teacher_params, batch, written)

    def of_tokens(tokens: dict[str, jax.Array]) -> dict[str, Any]:
        logits = student.logits(student_params, tokens["student"])
        clean = student.logits(student_params, tokens["clean"]) if "clean" in tokens else logits
        found: dict[str, Any] = {}
        if config.mle_weight:
            found["likelihood"] = divergences.cross_entropy(clean, tokens["targets"])
        if teaches:
            assert teacher is not None
            other = teacher.logits(teacher_params, tokens["teacher"])
            found |= of_divergence(logits, other, tokens["targets"], config.divergence)
        return found

    found = divergences.over_rows(of_tokens, inputs, config.logit_chunk)  # [B, R]
    return _sum_up(found, batch, written, selected, config, whole)


def rewrites(how: ImperfectConfig) -> bool:
    """Whether anything of the responses is replaced."""
    return how.rewrite != "vanilla" and how.alpha > 0


def make_imperfect(
    keys: jax.Array,
    student: LanguageModel,
    params: Params,
    states: States,
    batch: Batch,
    config: KIDConfig,
) -> tuple[jax.Array, jax.Array]:
    """Imperfect responses, by one pass of the student (two for `hard` and `easy`).

    Args:
        keys: [B] typed.
        student, params: without a gradient.
        states: of the student.
        batch: with the gold responses.
        config: static.

    Returns:
        ids [B, R] and which of them were replaced [B, R] bool. Where nothing is to be replaced, the
        responses themselves, and no pass is made.
    """
    ids, how = batch.responses, config.imperfect
    if not rewrites(how):
        return ids, jnp.zeros(ids.shape, bool)

    def by_token(function: Callable[..., jax.Array], found: jax.Array, *more: jax.Array) -> Any:
        return divergences.over_rows(  # [B, N]
            lambda x: function(student.logits(params, x[0]), *x[1:]),
            [found, *more],
            config.logit_chunk,
        )

    entropies = None
    if how.strategy in ("hard", "easy"):
        clean = states(ids, jnp.ones(ids.shape, bool))
        entropies = by_token(imperfect.token_entropies, clean)
    selected = imperfect.select_tokens(
        imperfect.purpose(keys, "select"),
        batch.maskable,
        how.alpha,
        how.strategy,
        entropies=entropies,
        span=how.span,
    )
    masks = imperfect.purpose(keys, "mask")
    masked, seen = imperfect.mask_tokens(masks, ids, selected, how, student.vocabulary)
    if how.rewrite == "masking_only":
        return imperfect.rewrite(ids, masked, masked, selected, how), selected
    where = _selected_places(selected, how)  # [B, K]
    temperature = how.fill_temperature if how.fill == "sample" else 0.0
    draws = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(
        imperfect.purpose(keys, "fill"), where
    )

    def fill(logits: jax.Array, key: jax.Array) -> jax.Array:
        return imperfect.predicted(logits[:, None], temperature, key)[:, 0]

    fills = by_token(fill, at(states(masked, seen), where), draws).astype(ids.dtype)
    filled = jax.vmap(lambda row, place, new: row.at[place].set(new))(ids, where, fills)
    return imperfect.rewrite(ids, masked, filled, selected, how), selected


def states_of(
    model: LanguageModel, params: Params, batch: Batch, prefix: Prefix | None = None
) -> States:
    """A function of response ids [B, R] that gives the states predicting each of them.

    Args:
        model, params: the model that reads, and its parameters.
        batch: with the prompts.
        prefix: of the model, for the prompts; None runs prompt and response as one sequence.

    Returns:
        (ids, which of them others may see) -> states [B, R, D]. What isn't seen keeps its place.
    """
    rows, length = batch.prompts.shape
    number = batch.responses.shape[1]
    known = batch.prompt_mask.astype(bool)
    before = jnp.cumsum(known, axis=1, dtype=jnp.int32)
    behind = before[:, -1:] + jnp.arange(number - 1, dtype=jnp.int32)  # positions of responses

    def continued(ids: jax.Array, seen: jax.Array) -> jax.Array:
        assert prefix is not None
        last, cache = prefix
        if number == 1:
            return last
        found = model.proceed(params, cache, ids[:, :-1], seen[:, :-1], behind)
        return jnp.concatenate([last, found], axis=1)

    def together(ids: jax.Array, seen: jax.Array) -> jax.Array:
        found = model.whole(
            params,
            jnp.concatenate([batch.prompts, ids[:, :-1]], axis=1),
            jnp.concatenate([known, seen[:, :-1]], axis=1),
            jnp.concatenate([jnp.maximum(before - 1, 0), behind], axis=1),
        )
        places = jnp.broadcast_to(length + jnp.arange(number - 1), (rows, number - 1))
        return at(found, jnp.concatenate([last_tokens(known), places], axis=1))

    return together if prefix is None else continued


def of_divergence(
    student: jax.Array, teacher: jax.Array, targets: jax.Array, config: DivergenceConfig
) -> dict[str, jax.Array]:
    """What each token adds to the divergence: one number, or the parts of ATKD.

    Args:
        student, teacher: logits [N, V].
        targets: [N] int.
        config: which divergence, and its parameters.

    Returns:
        "divergence" -> [N] nats, or the fields of `divergences.Decoupled` -> [N].
    """
    tau = config.temperature
    if config.name == "atkd":
        return divergences.decouple(student, teacher, targets, tau)._asdict()
    options = {
        "jsd": (config.beta,),
        "skew_forward_kl": (config.skew,),
        "skew_reverse_kl": (config.skew,),
        "adaptive_kl": (config.head_mass,),
        "decoupled": (targets, config.target_weight, config.other_weight),
    }.get(config.name, ())
    function = getattr(divergences, config.name)
    return {"divergence": function(student, teacher, *options, temperature=tau)}


def _teacher_states(
    teacher: LanguageModel, params: Params, batch: Batch, written: jax.Array
) -> jax.Array:
    """The teacher's states [B, R, D] on what was written, or those that were kept."""
    if batch.teacher_states is None:
        return states_of(teacher, params, batch)(written, jnp.ones(written.shape, bool))
    if written is not batch.responses:
        raise ValueError("teacher_states: expected None where responses are rewritten")
    return batch.teacher_states


def _sum_up(
    found: dict[str, jax.Array],
    batch: Batch,
    written: jax.Array,
    selected: jax.Array,
    config: KIDConfig,
    whole: Totals,
) -> tuple[jax.Array, Terms]:
    """The loss and its terms, from what was found for each token [B, R]."""
    total = whole.tokens if config.normalizer == "tokens" else whole.rows

    def mean(name: str) -> jax.Array:
        if name not in found:
            return jnp.float32(0)
        return divergences.masked_mean(found[name], batch.response_mask, config.normalizer, total)

    if config.divergence.name == "atkd":
        parts = divergences.Decoupled(*(found[name] for name in divergences.Decoupled._fields))
        alpha = config.divergence.target_weight
        divergence = divergences.atkd_loss(parts, batch.response_mask, alpha)
    else:
        divergence = mean("divergence")
    likelihood = mean("likelihood")
    loss = config.divergence_weight * divergence + config.mle_weight * likelihood
    right = selected & (written == batch.responses)
    return loss, Terms(divergence, likelihood, jnp.sum(selected), jnp.sum(right))


def _selected_places(selected: jax.Array, config: ImperfectConfig) -> jax.Array:
    """Places of the selected tokens, then of others, [B, K]: as many as can be selected."""
    length = selected.shape[1]
    most = length
    if config.strategy != "bernoulli":
        most = min(length, max(1, math.floor(config.alpha * length + 0.5 + 1e-6)))
    return jnp.argsort(~selected, axis=1, stable=True)[:, :most]
