"""A PAC-Bayes certificate of a stochastic network, optimized as Dziugaite and Roy (2017) did.

    Q = N(w, diag s^2),    P = N(w_0, lambda I),    lambda = c exp(-j / b),  c = 0.1, b = 100

minimize    R + sqrt(B)    or    (sqrt(R + B) + sqrt(B))^2,    R the surrogate risk of Q,
            B = (KL(Q, P) + 2 log(b log(c / lambda)) + log(pi^2 n / (6 delta))) / (2 (n - 1))

over w, s and lambda (the second by Perez-Ortiz et al. 2021: nearer to (2) where the risk is small).
Then j is rounded to an integer, KL recomputed, and with M draws from Q

    empirical risk <= kl^-1(mean 0-1 error of the draws, log(2 / delta') / M)                  (1)
    risk <= kl^-1((1), (KL + log(2 sqrt n / delta_j)) / n),    delta_j = 6 delta / (pi^2 j^2)  (2)

with probability 1 - delta - delta'. It bounds the risk of a network drawn anew from Q for every
input, not that of the mean network. w_0 may depend on nothing that the bound counts: it is drawn
here from the initializer, or comes from a model of other examples (Perez-Ortiz et al. 2021), which
are then left out of the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.interpret import trees
from jaxmethods.interpret.generalization.kl_bounds import kl_inverse, monte_carlo
from jaxmethods.interpret.problem import Data, Problem, number_of_examples
from jaxmethods.interpret.trees import Vector
from jaxmethods.method import gradient_step
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.predictions import right

LARGEST, PRECISION = 0.1, 100.0
"""c and b of the prior's grid of variances."""


class Prior(NamedTuple):
    """Made by `initial_prior` or `prior_of_other_examples`."""

    center: Vector
    """w_0."""
    used: jax.Array
    """[N] bool: examples that the center depends on, which the bound leaves out."""


class Posterior(NamedTuple):
    """Q and the prior's variance."""

    mean: Vector
    log_scale: Vector
    """log s, entry by entry."""
    log_variance: jax.Array
    """log lambda, []."""


class Certificate(NamedTuple):
    """All []."""

    bound: jax.Array
    """On the risk; 1 is vacuous."""
    empirical_bound: jax.Array
    """(1)."""
    draws_error: jax.Array
    """Mean 0-1 error of the draws."""
    kl: jax.Array
    examples: jax.Array
    """n, those that the bound counts."""
    vacuous: jax.Array
    """bool."""


def initial_prior(key: jax.Array, initialize: Callable[[jax.Array], Any], examples: int) -> Prior:
    """A prior centered at an initialization that is drawn here and has seen no data.

    Args:
        key: of the draw; training may start from `initialize(key)` too.
        initialize: key -> params.
        examples: N of the data the bound is to be for.

    Returns:
        The prior; all examples count.
    """
    return Prior(trees.floats(initialize(key)), jnp.zeros(examples, bool))


def prior_of_other_examples(center: Any, used: jax.Array) -> Prior:
    """A prior centered at a model that some of the examples trained.

    Args:
        center: its parameters.
        used: [N] bool, the examples that it depends on in any way, early stopping included.

    Returns:
        The prior.

    Raises:
        ValueError: all examples were used, so that none is left for the bound.
    """
    count = len(used)
    if bool(jnp.all(used)):
        raise ValueError(
            f"used: expected examples that the center doesn't depend on, got {count} of {count} "
            "used; center the prior at the initialization or at a model of one half"
        )
    return Prior(trees.floats(center), jnp.asarray(used, bool))


def initial_posterior(params: Any, log_variance: float = -3.5) -> Posterior:
    """Q around trained parameters, as wide as its prior at the start.

    Scales of |w| / 10, as Dziugaite and Roy start, cost log(lambda / s^2) / 2 of KL a parameter,
    which many steps of Adam are then spent on.

    Args:
        params: w.
        log_variance: log lambda, and twice the logarithm of every s.

    Returns:
        A posterior to be optimized.
    """
    mean = trees.floats(params)
    log_scale = jax.tree.map(lambda w: jnp.full_like(w, log_variance / 2), mean)
    return Posterior(mean, log_scale, jnp.asarray(log_variance, trees.dtype(mean)))


def draw(posterior: Posterior, key: jax.Array) -> Vector:
    """Parameters from Q."""
    noise = trees.random_like(key, posterior.mean, "normal")
    return jax.tree.map(
        lambda w, s, e: w + jnp.exp(s) * e, posterior.mean, posterior.log_scale, noise
    )


def divergence(posterior: Posterior, center: Vector, log_variance: jax.Array) -> jax.Array:
    """KL(Q, N(w_0, lambda I)), []."""

    def leaf(w: jax.Array, s: jax.Array, w0: jax.Array) -> jax.Array:
        log_ratio = 2 * s - log_variance
        away = (w - w0) ** 2 * jnp.exp(-log_variance)
        # Of nearly equal scales exp(r) - 1 - r is all rounding, the same for millions of entries.
        return jnp.sum(jnp.maximum(jnp.expm1(log_ratio) - log_ratio, 0) + away) / 2

    return trees.total(jax.tree.map(leaf, posterior.mean, posterior.log_scale, center))


def _grid_index(log_variance: jax.Array) -> jax.Array:
    """j = b log(c / lambda), at least 1: real while it is optimized."""
    return jnp.maximum(PRECISION * (jnp.log(LARGEST) - log_variance), 1.0)


def objective(
    posterior: Posterior,
    problem: Problem,
    prior: Prior,
    key: jax.Array,
    delta: float = 0.025,
    form: str = "quadratic",
) -> jax.Array:
    """The surrogate bound at one draw from Q; its gradient is an unbiased one.

    Args:
        posterior: Q and lambda.
        problem: a classifier; its loss, over log 2, bounds the 0-1 error from above.
        prior: its used examples don't count.
        key: of the draw.
        delta: probability that the bound fails.
        form: "quadratic" or "square root".

    Returns:
        [].

    Raises:
        ValueError: an unknown form.
    """
    if form not in ("quadratic", "square root"):
        raise ValueError(f'form: expected "quadratic" or "square root", got {form!r}')
    fresh = _counted(problem, prior)
    n = jnp.sum(fresh)
    losses = problem.losses(draw(posterior, key), problem.data)
    risk = jnp.sum(fresh * losses) / n / jnp.log(2.0)
    j = _grid_index(posterior.log_variance)
    kl = divergence(posterior, prior.center, posterior.log_variance)
    union = 2 * jnp.log(j) + jnp.log(jnp.pi**2 * n / (6 * delta))
    price = (kl + union) / (2 * (n - 1))
    if form == "square root":
        return risk + jnp.sqrt(price)
    return (jnp.sqrt(risk + price) + jnp.sqrt(price)) ** 2


@compiled("steps", "rate", "form")
def optimize(
    posterior: Posterior,
    problem: Problem,
    prior: Prior,
    key: jax.Array,
    steps: int = 1000,
    rate: float = 1e-3,
    delta: float = 0.025,
    form: str = "quadratic",
) -> tuple[Posterior, jax.Array]:
    """Adam on the surrogate bound, one draw a step.

    Args:
        posterior: the start.
        problem: one batch of all examples.
        prior: P's center and its examples.
        key: of the draws.
        steps: how many.
        rate: Adam's.
        delta: probability that the bound fails.
        form: of the objective, "quadratic" or "square root".

    Returns:
        The posterior and the objectives [steps].
    """
    optimizer = optax.adam(rate)
    value_and_gradient = jax.value_and_grad(objective)

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        own, state = carry
        value, gradient = value_and_gradient(own, problem, prior, key, delta, form)
        return gradient_step(optimizer, gradient, state, own), value

    start = posterior, optimizer.init(posterior)
    (found, _), values = jax.lax.scan(step, start, jax.random.split(key, steps))
    return found, values


@compiled("draws", "together")
def certificate(
    posterior: Posterior,
    problem: Problem,
    prior: Prior,
    key: jax.Array,
    draws: int = 1000,
    delta: float = 0.025,
    draws_delta: float = 0.01,
    together: int = 8,
) -> Certificate:
    """The bound (2) of a posterior's risk.

    Args:
        posterior: Q; however it was found.
        problem: a classifier of logits [N, C] and labels, one batch, no weights.
        prior: P's center and the examples that it depends on.
        key: of the draws, no key that training used.
        draws: M; 150,000 for a certificate that is tight in (1).
        delta: probability that (2) fails.
        draws_delta: that (1) fails.
        together: draws that are vectorized.

    Returns:
        The bound and what it is made of.

    Raises:
        ValueError: a prior of another number of examples, weights, or microbatches.
    """
    if problem.microbatched or problem.data.weight is not None:
        raise ValueError("problem: expected one batch without weights")
    count = number_of_examples(problem.data)
    if prior.used.shape != (count,):
        raise ValueError(f"prior: expected one of {count} examples, got {prior.used.shape}")
    fresh = _counted(problem, prior)
    n = jnp.sum(fresh)
    j = jnp.round(_grid_index(posterior.log_variance))
    log_variance = jnp.log(LARGEST) - j / PRECISION
    kl = divergence(posterior, prior.center, log_variance)

    def error(key: jax.Array) -> jax.Array:
        return jnp.sum(fresh * errors(problem, draw(posterior, key))) / n

    keys = jax.random.split(key, draws)
    mean = jnp.mean(jax.lax.map(error, keys, batch_size=min(together, draws)))
    above = monte_carlo(mean, draws, draws_delta)
    delta_j = 6 * delta / (jnp.pi**2 * j**2)
    bound = kl_inverse(above, (kl + jnp.log(2 * jnp.sqrt(n) / delta_j)) / n)
    return Certificate(bound, above, mean, kl, n, bound >= 1)


def _counted(problem: Problem, prior: Prior) -> jax.Array:
    """[N], 1 for examples that the bound counts: fresh ones that have a label."""
    return jnp.where(prior.used, 0.0, problem.weights(problem.data, jnp.float32))


def errors(problem: Problem, vector: Vector) -> jax.Array:
    """0-1 errors [N] of a classifier with these parameters; 1 where its outputs are NaN."""
    logits = problem.outputs(vector, problem.data.inputs)
    return (~right(logits, problem.data.targets)).astype(jnp.float32)


def held_out_risk(
    posterior: Posterior, problem: Problem, data: Data, key: jax.Array, draws: int = 64
) -> jax.Array:
    """Mean 0-1 error of draws from Q on other examples, [], which the certificate bounds.

    Args:
        posterior: Q.
        problem: the model.
        data: other examples.
        key: of the draws.
        draws: how many.

    Returns:
        [].
    """
    other = replace(problem, data=data)
    weight = other.weights(data, jnp.float32)

    def risk(key: jax.Array) -> jax.Array:
        return jnp.sum(weight * errors(other, draw(posterior, key))) / jnp.sum(weight)

    return jnp.mean(jax.lax.map(risk, jax.random.split(key, draws)))
