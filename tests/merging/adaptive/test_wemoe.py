"""The routed tower: its limits, its costs and its training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import merging
from jaxmethods.merging.adaptive import wemoe
from jaxmethods.merging.config import WEMoEConfig, ewemoe
from jaxmethods.models.clip import vit
from tests.merging import tiny

ALL = ("mlp", "self_attn")


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def features(params, pixels):
    return vit.forward(params, tiny.VISION, pixels, projection=tiny.setting().projection).features


@jax.jit
def all_plain(pixels):
    """Features of the base and of the second expert."""
    return features(tiny.setting().base, pixels), features(tiny.expert(tiny.setting(), 1), pixels)


def route(config, routers, pixels, groups=None, **options):
    model = wemoe.upcycle(tiny.setting().base, tiny.setting().stack, config)

    @jax.jit
    def run(model, routers, pixels):
        return wemoe.forward(
            model,
            routers,
            tiny.VISION,
            config,
            pixels,
            groups=groups,
            projection=tiny.setting().projection,
            **options,
        )

    return run(model, routers, pixels)


def constant(config, values):
    """Routers that ignore their input."""
    routers = wemoe.init_routers(jax.random.key(0), tiny.VISION, 3, config)
    return {
        name: jax.tree.map(jnp.zeros_like, router)._replace(
            bias=jnp.broadcast_to(jnp.asarray(values), router.bias.shape)
        )
        for name, router in routers.items()
    }


def images(count=6):
    return tiny.setting().unlabeled.inputs.reshape(-1, 8, 8, 3)[:count]


def test_zero_routing_gives_the_base_and_one_hot_routing_the_expert():
    config = WEMoEConfig(modules=ALL)
    model = wemoe.upcycle(tiny.setting().base, tiny.setting().stack, config)
    modules = {name: tiny.setting().base["encoder"]["layers"][name] for name in ALL}
    folded = wemoe.fold(model, dict.fromkeys(ALL, jnp.zeros(3)))
    assert_equal({name: folded["encoder"]["layers"][name] for name in ALL}, modules)
    folded = wemoe.fold(model, dict.fromkeys(ALL, jnp.eye(3)[1]))
    theirs = tiny.expert(tiny.setting(), 1)["encoder"]["layers"]
    assert_equal(
        {name: folded["encoder"]["layers"][name] for name in ALL},
        {name: theirs[name] for name in ALL},
    )
    base, expert = all_plain(images())
    # The rest of the network is the base's, or the expert's, where it is merged with such weights.
    whole = model._replace(merged=strip(tiny.expert(tiny.setting(), 1)))
    forward = jax.jit(wemoe.forward, static_argnums=(2, 3))
    routed = forward(
        whole, constant(config, jnp.eye(3)[1]), tiny.VISION, config, images(),
        projection=tiny.setting().projection,
    )  # fmt: skip
    np.testing.assert_allclose(routed.vision.features, expert, atol=1e-5)
    zero = config.model_copy(update={"coefficient": 0.0})
    np.testing.assert_allclose(
        route(zero, constant(zero, [0.0] * 3), images()).vision.features, base, atol=1e-5
    )


def strip(tower):
    layers = {k: v for k, v in tower["encoder"]["layers"].items() if k not in ALL}
    return {**tower, "encoder": {"layers": layers}}


@pytest.mark.slow
def test_constant_routing_is_task_arithmetic_in_every_variant():
    merged = merging.task_arithmetic(tiny.setting().base, tiny.setting().stack, 0.3)
    expected = jax.jit(features)(merged, images())
    for update in [
        {"router_depth": 0},
        {"router_depth": 1, "modules": ALL},
        {"shared_router": True, "layer_encoding": 4, "strategy": "expertwise"},
    ]:
        config = WEMoEConfig(**update)
        found = route(config, constant(config, [0.3] * 3), images())
        np.testing.assert_allclose(found.vision.features, expected, atol=1e-5)
        folded = wemoe.fold(
            wemoe.upcycle(tiny.setting().base, tiny.setting().stack, config),
            dict.fromkeys(config.modules, jnp.full(3, 0.3)),
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), folded, merged)


def lively(config, scale=30.0):
    """Routers whose outputs differ between inputs."""
    routers = wemoe.init_routers(jax.random.key(3), tiny.VISION, 3, config)
    return {name: router._replace(weight=scale * router.weight) for name, router in routers.items()}


def test_an_image_is_routed_without_regard_to_the_others():
    config = WEMoEConfig()
    out = route(config, lively(config), images())
    assert np.std(out.coefficients["mlp"], axis=1).max() > 1e-3
    order = jnp.asarray([3, 0, 5])
    fewer = route(config, lively(config), images()[order])
    np.testing.assert_allclose(fewer.vision.features, out.vision.features[order], atol=1e-5)
    alone = route(config, lively(config), images()[:1])
    batch = route(config, lively(config), images()[:1], groups=1)
    np.testing.assert_allclose(alone.vision.features, batch.vision.features, atol=1e-6)


@pytest.mark.slow
def test_a_shared_router_gets_the_sum_of_the_gradients():
    own, shared = WEMoEConfig(), WEMoEConfig(shared_router=True)
    batch = tiny.wemoe_batch(tiny.setting(), own)
    router = lively(shared)["mlp"]
    repeated = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), router)

    @jax.jit
    def gradients(router, repeated):
        def of(routers, config):
            return wemoe.loss({"mlp": routers}, batch, batch.unlabeled.inputs, tiny.VISION, config)

        grad = jax.grad(of, has_aux=True)
        return grad(router, shared)[0], grad(repeated, own)[0]

    one, several = gradients(router, repeated)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.sum(0), rtol=1e-3, atol=1e-5), one, several
    )


def test_pruning_is_monotone_and_extreme_ratios_are_the_papers():
    def nonzero(ratio):
        tau = wemoe.upcycle(tiny.setting().base, tiny.setting().stack, ewemoe(ratio)).tau
        return sum(int(jnp.count_nonzero(leaf)) for leaf in jax.tree.leaves(tau))

    counts = [nonzero(ratio) for ratio in (0.0, 0.5, 0.9, 1.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


def test_adaptation_lowers_the_entropy_and_moves_routers_alone():
    config = WEMoEConfig(learning_rate=1e-2, steps=20, batch_size=4, shared_router=True)
    batch = tiny.wemoe_batch(tiny.setting(), config)
    method = wemoe.adapter(tiny.VISION, config)
    state = method.init(jax.random.key(0), batch)

    @jax.jit
    def train(state, batch):
        return jax.lax.scan(lambda s, _: method.step(s, batch), state, length=20)

    after, metrics = train(state, batch)
    assert metrics["loss"][-3:].mean() < metrics["loss"][:3].mean()
    again, _ = train(state, batch)
    assert_equal(jax.random.key_data(after.key), jax.random.key_data(again.key))
    assert_equal(after.routers, again.routers)


def test_the_program_does_not_grow_with_layers_or_images():
    def equations(layers, count):
        vision = tiny.VISION.model_copy(update={"num_hidden_layers": layers})
        of = tiny.setting(vision, images=count)
        config = WEMoEConfig(batch_size=count)
        method = wemoe.adapter(vision, config)
        batch = jax.eval_shape(lambda: tiny.wemoe_batch(of, config))
        state = jax.eval_shape(method.init, jax.random.key(0), batch)
        return str(jax.make_jaxpr(method.step)(state, batch)).count(" = ")

    assert equations(2, 4) == equations(5, 4) == equations(2, 7)


def test_other_architectures_are_refused_by_name():
    other = tiny.setting(tiny.VISION.model_copy(update={"intermediate_size": 24}))
    with pytest.raises(ValueError, match="leaf 'encoder/layers/mlp/fc1/bias'"):
        wemoe.upcycle(tiny.setting().base, other.stack, WEMoEConfig())
