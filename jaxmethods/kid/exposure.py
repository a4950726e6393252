"""Exposure bias: how much further a student drifts on its own prefixes than on its teacher's.

    ExAccErr(l) = 100 % (R(l) - l eps(l)) / (l eps(l))
    R(l) = sum_{t <= l} E_{y_<t ~ q} KL(p || q at t),  l eps(l) = the same with y_<t ~ p

Arora et al., "Why Exposure Bias Matters", Findings of ACL 2022, arXiv 2204.01171, as MiniLLM and
KID report it. Prefixes are sampled, the KL over the vocabulary is exact. 0 says that the student's
own mistakes cost it nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.kid.loss import Batch, states_of
from jaxmethods.kid.model import LanguageModel, Params
from jaxmethods.language import divergences


def token_divergences(
    student: LanguageModel,
    student_params: Params,
    teacher: LanguageModel,
    teacher_params: Params,
    batch: Batch,
    logit_chunk: int = 512,
) -> jax.Array:
    """KL(p || q) at each token of sampled responses.

    Args:
        student, teacher: models of one vocabulary.
        student_params, teacher_params: their parameters.
        batch: prompts, and responses that one of the models sampled.
        logit_chunk: tokens whose logits are there at one time.

    Returns:
        [B, R] nats, 0 behind the end of a response.
    """
    seen = jnp.ones(batch.responses.shape, bool)
    own = states_of(student, student_params, batch)(batch.responses, seen)
    other = states_of(teacher, teacher_params, batch)(batch.responses, seen)
    flat = [leaf.reshape(-1, leaf.shape[-1]) for leaf in (own, other)]  # [B R, D]

    def of_tokens(states: list[jax.Array]) -> jax.Array:
        logits = student.logits(student_params, states[0])
        return divergences.forward_kl(logits, teacher.logits(teacher_params, states[1]))

    found = divergences.over_chunks(of_tokens, flat, logit_chunk).reshape(seen.shape)
    return jnp.where(batch.response_mask.astype(bool), found, 0)


def excess_accumulated_error(on_student: jax.Array, on_teacher: jax.Array) -> jax.Array:
    """ExAccErr for every length, in percent.

    Args:
        on_student: [S, R] of `token_divergences` on responses that the student sampled.
        on_teacher: [S', R] on responses of the teacher.

    Returns:
        [R], the last of the whole response; 0 where the models don't differ on the teacher's.
    """
    accumulated, expected = (
        jnp.cumsum(jnp.mean(values, axis=0)) for values in (on_student, on_teacher)
    )
    differs = ~(expected <= 0)  # true of NaN, which is no answer
    return jnp.where(differs, 100 * (accumulated / jnp.where(differs, expected, 1) - 1), 0)


def excess_deviation(on_student: jax.Array, on_teacher: jax.Array) -> jax.Array:
    """Standard error over prompts of the ExAccErr of whole responses, in percent.

    It is a ratio of means: the error is that of the mean of R_i - (R / E) E_i over E, to first
    order, with R_i and E_i of prompt i and their means R and E.

    Args:
        on_student: [S, R] of `token_divergences` on responses that the student sampled.
        on_teacher: [S, R] on responses of the teacher to the same prompts, in their order.

    Returns:
        []; 0 where there is one prompt, or where the models don't differ on the teacher's.
    """
    own, other = jnp.sum(on_student, axis=1), jnp.sum(on_teacher, axis=1)
    expected, number = jnp.mean(other), len(own)
    if number < 2:
        return jnp.zeros_like(expected)
    differs = ~(expected <= 0)
    safe = jnp.where(differs, expected, 1)
    residual = (own - jnp.mean(own) / safe * other) / safe
    error = 100 * jnp.std(residual, ddof=1) / number**0.5
    return jnp.where(differs, error, 0)
