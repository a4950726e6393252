"""How students start."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.offline_rl import policies as policy


def test_the_deterministic_student_starts_as_in_the_published_code():
    """Hidden weights U(+-1/sqrt(out)), hidden biases 0.1, the last layer U(+-0.003)."""
    *hidden, last = policy.init_deterministic(jax.random.key(0), 5, 2, (40, 30))
    for (weights, biases), width in zip(hidden, (40, 30), strict=True):
        bound = width**-0.5
        assert 0.95 * bound < jnp.abs(weights).max() <= bound
        np.testing.assert_allclose(biases, np.full(width, 0.1), rtol=1e-6)
    for leaf in last:
        assert 0 < jnp.abs(leaf).max() <= 3e-3


@pytest.mark.slow
def test_the_density_of_an_action_is_that_of_its_noise_over_the_slope():
    """p(a) = N(eps; 0, I) / |det da/d eps|, the change of variables."""
    params = policy.init_policy(jax.random.key(0), 3, 2, hidden=4, n_layers=2)
    state, noise = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.3, -0.8])
    slope = jax.jacobian(lambda eps: policy.policy_sample(params, state, eps))(noise)
    gaussian = jnp.sum(-0.5 * noise**2 - 0.5 * jnp.log(2 * jnp.pi))
    expected = gaussian - np.linalg.slogdet(np.asarray(slope, float))[1]
    found = policy.policy_log_prob(params, state, noise)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
