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
        proxy: what the choice is made by, [Q, m].
        reward: what it is worth, [Q, m].
        ns: numbers of candidates, each at most m.

    Returns:
        Proxy and reward [len(ns)], means over prompts; unbiased.
    """
    weights = jnp.asarray(np.stack([selection_weights(proxy.shape[1], n) for n in ns]))
    order = jnp.argsort(proxy, axis=1)
    ordered = [jnp.take_along_axis(x, order, axis=1) for x in (proxy, reward)]
    chosen, worth = (jnp.mean(x, axis=0) @ weights.T.astype(x.dtype) for x in ordered)
    return chosen, worth
