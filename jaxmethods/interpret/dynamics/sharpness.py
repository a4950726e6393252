"""How much the loss rises around the parameters.

    one step (SAM)      L(theta + rho g / |g|) - L(theta)                    (Foret et al. 2021)
    ascent              the same after k projected gradient steps in |e| <= rho
    adaptive (ASAM)     |e / |theta|| <= rho, one step                       (Kwon et al. 2021)
    flatness            the largest sigma with E L(theta + sigma eps) <= L + 0.1,
                        eps normal, or normal times |theta|                  (Jiang et al. 2020)
    stability           lambda_max * rate / 2, which hovers at 1 at the edge of stability
                                                                             (Cohen et al. 2021)

All but the adaptive forms change when a ReLU network's layers are rescaled without changing its
function; none of them bounds generalization.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature.eigenpairs import eigenpairs
from jaxmethods.interpret.curvature.operators import hessian
from jaxmethods.interpret.estimates import mean_of
from jaxmethods.interpret.problem import Estimate, Problem, mean_gradient, mean_loss
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled


@compiled("steps", "adaptive")
def ascent_sharpness(
    problem: Problem, radius: float = 0.05, steps: int = 1, adaptive: bool = False
) -> jax.Array:
    """The rise of the loss by gradient ascent in a ball; a lower bound of the largest rise.

    Args:
        problem: parameters and data.
        radius: rho.
        steps: 1 for SAM's; more are projected back onto the ball.
        adaptive: measure lengths relative to |theta|, entry by entry.

    Returns:
        [], in units of the loss.

    Raises:
        ValueError: no step.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    vector = problem.floats
    size = jax.tree.map(lambda w: jnp.abs(w) if adaptive else jnp.ones_like(w), vector)
    start = mean_loss(problem, vector)

    def project(step: Vector) -> Vector:
        """Onto the sphere, in coordinates in which it is round."""
        factor = radius / jnp.maximum(trees.norm(step), jnp.finfo(trees.dtype(step)).tiny)
        return trees.scale(factor, step)

    def one(_: int, step: Vector) -> Vector:
        at = jax.tree.map(lambda w, t, e: w + t * e, vector, size, step)
        gradient = jax.tree.map(jnp.multiply, size, mean_gradient(problem, at))
        return project(trees.add(step, project(gradient)))

    step = jax.lax.fori_loop(0, steps, one, trees.zeros(vector))
    return mean_loss(problem, jax.tree.map(lambda w, t, e: w + t * e, vector, size, step)) - start


class Flatness(NamedTuple):
    """[] each."""

    sigma: jax.Array
    """The largest noise that the loss bears; at `most` where it bears all."""
    rise: Estimate
    """The loss's rise at that noise."""


@compiled("draws", "magnitude_aware", "steps", "together")
def pac_bayes_flatness(
    problem: Problem,
    key: jax.Array,
    rise: float = 0.1,
    draws: int = 32,
    most: float = 1.0,
    magnitude_aware: bool = False,
    steps: int = 20,
    together: int = 4,
) -> Flatness:
    """The largest noise in the parameters that raises the mean loss by no more than `rise`.

    Bisected with the same draws at every sigma, so that the rise is a smooth function of it.

    Args:
        problem: parameters and data.
        key: of the draws.
        rise: allowed.
        draws: how many.
        most: upper end of the search.
        magnitude_aware: noise relative to |theta|, entry by entry.
        steps: bisections.
        together: draws that are vectorized.

    Returns:
        sigma and the rise there with its error.
    """
    vector = problem.floats
    start = mean_loss(problem, vector)
    keys = jax.random.split(key, draws)

    def rises(sigma: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            noise = trees.random_like(key, vector, "normal")
            if magnitude_aware:
                noise = jax.tree.map(lambda e, w: e * jnp.abs(w), noise, vector)
            return mean_loss(problem, trees.axpy(sigma, noise, vector)) - start

        return jax.lax.map(one, keys, batch_size=min(together, draws))

    def halve(number: jax.Array, found: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        low, high, _ = found
        # The last turn measures what was found: the model is traced once.
        middle = jnp.where(number < steps, (low + high) / 2, low)
        own = rises(middle)
        borne = jnp.mean(own) <= rise
        return jnp.where(borne, middle, low), jnp.where(borne, high, middle), own

    ends = jnp.zeros((), start.dtype), jnp.asarray(most, start.dtype)
    low, _, own = jax.lax.fori_loop(0, steps + 1, halve, (*ends, jnp.zeros(draws, start.dtype)))
    return Flatness(low, mean_of(own))


def edge_of_stability(problem: Problem, key: jax.Array, rate: float, steps: int = 32) -> Estimate:
    """lambda_max * rate / 2: above 1 gradient descent is unstable along that direction.

    Args:
        problem: parameters and data.
        key: of Lanczos' start.
        rate: learning rate of plain gradient descent.
        steps: of Lanczos.

    Returns:
        The ratio [] with the eigenvalue's residual as its error.
    """
    found = eigenpairs(hessian(problem), key, 1, steps)
    factor = rate / 2
    return Estimate(factor * found.values[0], factor * found.residuals[0], jnp.asarray(1))
