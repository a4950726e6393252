"""One merged module, computed in several ways."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.merging.adaptive import fused, merged_modules, routers
from jaxmethods.models.clip import vit
from tests.programs import slowly

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
    """Every sample with merged weights of its own."""
    c = jnp.repeat(coefficients, len(h) // len(coefficients), axis=0)

    def one(h, c):
        merged = jax.tree.map(lambda w, v: w + jnp.tensordot(c, v, 1), base, tau)
        return vit.mlp(merged, vit.VisionConfig(), h)

    return jax.vmap(one)(h, c)


SHAPES = [
    *(slowly(*shape) for shape in [(1, 1, 1, 1), (1, 5, 3, 1), (6, 1, 3, 6), (7, 4, 5, 7)]),
    *[(6, 5, 3, 6), (6, 3, 2, 2)],
]
"""B, L, T, G"""


@pytest.mark.parametrize(("batch", "length", "tasks", "groups"), SHAPES)
def test_all_strategies_agree_in_value_and_gradient(batch, length, tasks, groups):
    base, tau = module(tasks, 5, 7)
    rng = np.random.default_rng(1)
    h = jnp.asarray(rng.normal(size=(batch, length, 5)), jnp.float32)
    c = jnp.asarray(rng.normal(size=(groups, tasks)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=h.shape), jnp.float32)
    ways = [("expertwise", {}), ("fused", {}), ("blocks", {"block": 3})]
    ways += [("merge", {"chunk": chunk}) for chunk in (1, min(2, groups))]

    @jax.jit
    def run(h, c):
        def of(way):
            def call(h, c):
                return merged_modules.merged_mlp(ACT, base, tau, h, c, way[0], **way[1])

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
        merged = merged_modules.merge_weights(base, tau, c)
        expected = jax.tree.map(lambda w, t, add=add: w + add(t), base, tau)
        jax.tree.map(np.testing.assert_array_equal, merged, expected)


@pytest.mark.parametrize("strategy", ["merge", "blocks", "expertwise", "fused"])
def test_a_sample_does_not_see_the_others_and_a_layer_is_read_out_of_a_stack(strategy):
    layers = [module(3, 5, 7, seed) for seed in range(2)]
    stacks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    rng = np.random.default_rng(1)
    h = jnp.asarray(rng.normal(size=(6, 4, 5)), jnp.float32)
    c = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    order = jnp.asarray([3, 0, 5])

    @jax.jit
    def run(stacks, h, c, layer):
        mlp = partial(merged_modules.merged_mlp, ACT, strategy=strategy)
        (base, tau), (bases, taus) = layers[1], stacks
        return mlp(base, tau, h, c), mlp(bases, taus, h[order], c[order], layer=layer)

    every, some = run(stacks, h, c, 1)
    np.testing.assert_allclose(some, every[order], rtol=0, atol=1e-5 * np.abs(every).max())


@pytest.mark.parametrize("strategy", ["blocks", "fused"])
def test_the_gradient_of_the_experts_themselves_is_that_of_merging(strategy):
    base, tau = module(2, 3, 5)
    h, c = jnp.linspace(-1, 1, 24).reshape(4, 2, 3), jnp.linspace(-1, 1, 8).reshape(4, 2)

    def total(base, tau, strategy):
        return jnp.sum(merged_modules.merged_mlp(ACT, base, tau, h, c, strategy, block=2) ** 2)

    gradient = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(base, tau, strategy),
        gradient(base, tau, "merge"),
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernel_lowers_for_accelerators(platform, dtype):
    def of(*shape):
        return {
            "weight": jax.ShapeDtypeStruct(shape, dtype),
            "bias": jax.ShapeDtypeStruct(shape[:-1], dtype),
        }

    x, c = jax.ShapeDtypeStruct((5, 50, 96), dtype), jax.ShapeDtypeStruct((5, 3), jnp.float32)
    tiles = {"cuda": "gpu", "tpu": "tpu"}[platform]
    run = jax.jit(partial(fused.merged_linear, platform=tiles, interpret=False))
    traced = run.trace(x, c, of(160, 96), of(3, 160, 96))
    try:
        lowered = traced.lower(lowering_platforms=(platform,))
    except RuntimeError as error:
        # jax 0.12 wants to see the GPU that it lowers for; jax 0.10 doesn't.
        if "No supported GPU devices" not in str(error):
            raise
        pytest.skip("this jax lowers for a GPU only where there is one")
    assert {"cuda": "triton", "tpu": "tpu_custom_call"}[platform] in lowered.as_text()


def test_the_cheapest_strategy_is_chosen_by_shape():
    size = {"tasks": 8, "weights": 4_700_000, "units": 3072}
    choose = partial(merged_modules.choose, **size)
    assert choose(16, 50, device="cpu").strategy == "blocks"
    assert choose(1, 800, device="cpu").strategy == "merge"
    assert choose(16, 1, device="cpu").strategy == "blocks"
    gpu = choose(16, 50, itemsize=2, device="gpu")
    assert gpu == ("blocks", 16, 3072)
    many = choose(10_000, 257, device="gpu")
    assert 10_000 * many.block / 3072 * 4 * 4_700_000 <= 2**30
    assert many.chunk * 4 * 4_700_000 <= 2**30
    assert choose(16, 25, itemsize=2, device="gpu").strategy == "expertwise"


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


def test_a_blocks_encoding_is_sines_and_cosines_of_falling_frequencies():
    """sin(l w_i) and cos(l w_i), w_i = 10000^(-2 i / E)."""
    found = routers.layer_encodings(5, 6)
    angles = np.arange(5)[:, None] * 10000.0 ** (-2 * np.arange(3) / 6)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
