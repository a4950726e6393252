"""One merged module, computed in several ways."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.merging import experts, routers
from jaxmethods.models import vit

ACT = vit.activation("quick_gelu")


def module(tasks, width, inner, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)

    def layer(*shape):
        return {"weight": normal(*shape), "bias": normal(*shape[:-1])}

    base = {"fc1": layer(inner, width), "fc2": layer(width, inner)}
    tau = {"fc1": layer(tasks, inner, width), "fc2": layer(tasks, width, inner)}
    return base, tau


def by_definition(base, tau, h, coefficients):
    """Sample after sample, with merged weights."""
    per_group = len(h) // len(coefficients)
    rows = []
    for index, tokens in enumerate(h):
        c = coefficients[index // per_group]
        merged = jax.tree.map(lambda w, v, c=c: w + jnp.tensordot(c, v, 1), base, tau)
        rows.append(vit.mlp(merged, vit.VisionConfig(), tokens))
    return jnp.stack(rows)


SHAPES = [(1, 1, 1, 1), (1, 5, 3, 1), (6, 1, 3, 6), (6, 5, 3, 6), (6, 3, 2, 2), (7, 4, 5, 7)]
"""B, L, T, G"""


@pytest.mark.parametrize(("batch", "length", "tasks", "groups"), SHAPES)
def test_all_strategies_agree_in_value_and_gradient(batch, length, tasks, groups):
    base, tau = module(tasks, 5, 7)
    rng = np.random.default_rng(1)
    h = jnp.asarray(rng.normal(size=(batch, length, 5)), jnp.float32)
    c = jnp.asarray(rng.normal(size=(groups, tasks)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=h.shape), jnp.float32)
    ways = [("expertwise", None), ("merge", 1), ("merge", 2), ("merge", groups)]

    @jax.jit
    def run(h, c):
        def of(way):
            def call(h, c):
                return experts.merged_mlp(ACT, base, tau, h, c, way[0], chunk=way[1])

            out, pullback = jax.vjp(call, h, c)
            return out, pullback(cotangent)

        out, pullback = jax.vjp(lambda h, c: by_definition(base, tau, h, c), h, c)
        return (out, pullback(cotangent)), [of(way) for way in ways]

    expected, found = run(h, c)
    for one in found:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()),
            one,
            expected,
        )


def test_zero_and_one_hot_coefficients_give_base_and_expert_exactly():
    base, tau = module(3, 4, 6)
    step = 2.0**-10
    base, tau = jax.tree.map(lambda leaf: jnp.round(leaf / step) * step, (base, tau))
    for c, add in [(jnp.zeros(3), lambda t: 0 * t[0]), (jnp.eye(3)[1], lambda t: t[1])]:
        merged = experts.merge_weights(base, tau, c)
        expected = jax.tree.map(lambda w, t, add=add: w + add(t), base, tau)
        jax.tree.map(np.testing.assert_array_equal, merged, expected)


def test_the_cheaper_strategy_is_chosen_by_shape():
    size = {"tasks": 8, "weights": 4_700_000}
    assert experts.choose(16, 50, **size, device="cpu") == ("merge", 1)
    assert experts.choose(16, 1, **size, device="cpu").strategy == "expertwise"
    gpu = experts.choose(16, 50, **size, itemsize=2, device="gpu")
    assert gpu == ("merge", 16)
    assert experts.choose(10_000, 257, **size, device="gpu").chunk * 4 * 4_700_000 <= 2**30
    assert experts.choose(16, 25, **size, itemsize=2, device="gpu").strategy == "expertwise"


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_routers_start_near_task_arithmetic(depth):
    router = routers.init(jax.random.key(0), 6, 3, depth=depth, coefficient=0.3)
    h = jax.random.normal(jax.random.key(1), (4, 5, 6))
    c = routers.apply(router, h)
    assert c.shape == (4, 3)
    np.testing.assert_allclose(c, 0.3, atol=0.05)


def test_groups_are_means_and_one_group_is_the_batch():
    router = routers.init(jax.random.key(0), 6, 3)
    router = router._replace(weight=jax.random.normal(jax.random.key(2), (3, 6)))
    h = jax.random.normal(jax.random.key(1), (6, 5, 6))
    alone = routers.coefficients(router, h)
    np.testing.assert_allclose(routers.coefficients(router, h, 1)[0], alone.mean(0), rtol=1e-5)
    np.testing.assert_allclose(routers.coefficients(router, h, 6), alone, rtol=1e-6)
    ids = jnp.asarray([4, 0, 4, 0, 0, 2])
    grouped = routers.coefficients(router, h, ids)
    np.testing.assert_allclose(grouped[0], alone[jnp.asarray([0, 2])].mean(0), rtol=1e-5)
    np.testing.assert_allclose(grouped[5], alone[5], rtol=1e-5)
    with pytest.raises(ValueError, match="divisor of the 6 samples"):
        routers.coefficients(router, h, 4)


def test_the_encoding_is_put_before_every_token():
    router = routers.init(jax.random.key(0), 6, 3, encoding=4)
    encoding = routers.layer_encodings(3, 4)[2]
    h = jax.random.normal(jax.random.key(1), (2, 5, 6))
    tokens = jnp.concatenate([jnp.broadcast_to(encoding, (2, 5, 4)), h], axis=-1)
    np.testing.assert_allclose(
        routers.apply(router, h, encoding), routers.apply(router, tokens), atol=1e-6
    )
