"""Best-of-n sampling: how far it moves a policy, what it gains, and where the proxy fails.

    KL(best of n, policy) <= log n - (n - 1) / n                          (Beirami et al. 2024)
    E max of n from m samples, without drawing again:
        sum_i C(i - 1, n - 1) / C(m, n) r_(i)

with r_(1) <= ... <= r_(m). Chosen by a proxy and judged by the true reward, the same weights give
the curve of over-optimization (Gao, Schulman, Hilton 2023).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

from jaxmethods.numerics.precision import wide


def best_of_n_kl(n: jax.Array | np.ndarray) -> np.ndarray:
    """The bound log n - (n - 1) / n, nats; exact where no two answers have equal reward."""
    n = np.asarray(n, float)
    if np.any(n < 1):
        raise ValueError(f"n: expected at least 1, got {n.min()}")
    return np.log(n) - (n - 1) / n


def selection_weights(samples: int, n: int) -> np.ndarray:
    """[m]: probability that the i-th smallest of m is the largest of n drawn without replacement.

    Args:
        samples: m.
        n: at most m.

    Returns:
        [m] float64, of sum one.

    Raises:
        ValueError: n is not within 1 to m.
    """
    if not 1 <= n <= samples:
        raise ValueError(f"n: expected 1 to the {samples} samples, got {n}")
    i = np.arange(1, samples + 1, dtype=float)

    def log_choose(a: np.ndarray | float, b: float) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return gammaln(np.add(a, 1)) - gammaln(b + 1) - gammaln(np.subtract(a, b) + 1)

    there = i >= n
    logs = log_choose(np.where(there, i - 1, n - 1), n - 1) - log_choose(samples, n)
    return np.where(there, np.exp(logs), 0.0)


def over_optimization(
    proxy: jax.Array, reward: jax.Array, ns: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Expected proxy and true reward of best-of-n, from m samples of Q prompts.

    Args:
        proxy: what the choice is made by, [Q, m]; equal ones are chosen equally often, NaN last.
        reward: what it is worth, [Q, m].
        ns: numbers of candidates, each at most m.

    Returns:
        Proxy and reward [len(ns)], means over prompts, float32 at least; unbiased.
    """
    proxy, reward = wide(proxy), wide(reward)
    weights = np.stack([selection_weights(proxy.shape[1], n) for n in ns])
    until = jnp.asarray(np.pad(np.cumsum(weights, axis=1), ((0, 0), (1, 0))), proxy.dtype)

    def of_prompt(proxy: jax.Array, reward: jax.Array) -> jax.Array:
        score = jnp.where(jnp.isnan(proxy), -jnp.inf, proxy)
        ordered = jnp.sort(score)
        first, last = (jnp.searchsorted(ordered, score, side=side) for side in ("left", "right"))
        share = (until[:, last] - until[:, first]) / (last - first)  # [len(ns), m]
        return jnp.sum(jnp.where(share > 0, jnp.stack([proxy, reward])[:, None], 0) * share, axis=2)

    chosen, worth = jnp.mean(jax.vmap(of_prompt)(proxy, reward), axis=0)
    return chosen, worth
