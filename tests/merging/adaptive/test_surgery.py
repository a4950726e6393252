"""Corrections that start at nothing and learn what is missing."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from jaxmethods.merging.adaptive import adaptation, surgery, wemoe
from jaxmethods.merging.config import SurgeryConfig, WEMoEConfig
from jaxmethods.models.clip import vit
from tests.merging import tiny
from tests.programs import FUSED


def encode(model, pixels, correct, corrections):
    out = vit.forward(
        model,
        tiny.VISION,
        pixels,
        projection=tiny.setting().projection,
        hooks=vit.Hooks(after=correct),
        per_layer=corrections,
        taps=("token_means",),
    )
    return out.features, out.encoded.token_means


@pytest.fixture(scope="module")
def computed():
    """Merged features and expert targets of all images, and fresh modules of SurgeryV2."""

    @partial(jax.jit, compiler_options=FUSED)
    def run(pixels):
        merged, means = jax.vmap(lambda x: encode(tiny.merged(), x, None, None))(pixels)
        targets = jax.vmap(lambda p, x: encode(p, x, None, None))(tiny.setting().stack, pixels)
        modules = surgery.init(jax.random.key(0), 3, 6, 4, 2, 12)
        return (
            merged,
            means,
            targets,
            surgery.encode_corrected(encode, tiny.merged(), modules, pixels),
        )

    merged, means, (features, target_means), corrected = run(tiny.setting().unlabeled.inputs)
    targets = surgery.Targets(features, target_means.swapaxes(1, 2))
    return merged, means, targets, corrected


def test_zero_surgery_is_the_merged_model_exactly(computed):
    merged, means, _, (features, corrected_means) = computed
    np.testing.assert_array_equal(features, merged)
    np.testing.assert_array_equal(corrected_means, means)
    modules = surgery.init(jax.random.key(0), 3, 6, 4)
    np.testing.assert_array_equal(surgery.correct_features(modules, merged), merged)


def test_nothing_is_lost_where_merged_and_expert_agree(computed):
    _, _, targets, _ = computed
    modules = surgery.init(jax.random.key(0), 3, 6, 4)
    config = SurgeryConfig()
    (value, _), gradient = jax.value_and_grad(surgery.loss, has_aux=True)(
        modules, None, targets.features, targets, config
    )
    assert value == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_training_brings_features_closer_and_tasks_do_not_touch(computed, deep, kind):
    merged, _, targets, _ = computed
    config = SurgeryConfig(deep=deep, rank=4, loss=kind, batch_size=4, learning_rate=1e-2)
    method = surgery.aligner(config, encode if deep else None)
    inputs = tiny.setting().unlabeled.inputs if deep else merged
    data = surgery.Batch(
        adaptation.Unlabeled(inputs, tiny.setting().unlabeled.counts), targets, tiny.merged()
    )
    if not deep:
        data = data._replace(model=None)
    state = method.init(jax.random.key(0), data)

    @jax.jit
    def train(state, data):
        return jax.lax.scan(lambda s, _: method.step(s, data), state, length=30)

    after, metrics = train(state, data)
    assert metrics["loss"][-3:].mean() < 0.9 * metrics["loss"][:3].mean()
    other = data._replace(targets=jax.tree.map(lambda leaf: leaf.at[2].add(1.0), data.targets))
    changed, _ = train(state, other)
    for one, two in zip(after.modules, changed.modules, strict=True):
        if one is not None:
            np.testing.assert_array_equal(one[:2], two[:2])
            assert (one[2] != two[2]).any()


def test_deep_surgery_works_on_a_routed_model():
    config = WEMoEConfig(router_depth=1)
    model = wemoe.upcycle(tiny.setting().base, tiny.setting().stack, config)
    routers = wemoe.init_routers(jax.random.key(0), tiny.VISION, 3, config)

    def encode_routed(model, pixels, correct, corrections):
        upcycled, routers = model
        out = wemoe.forward(
            upcycled,
            routers,
            tiny.VISION,
            config,
            pixels,
            projection=tiny.setting().projection,
            after=correct,
            per_layer=corrections,
            taps=("token_means",),
        ).vision
        return out.features, out.encoded.token_means

    @partial(jax.jit, compiler_options=FUSED)
    def run(pixels):
        modules = surgery.init(jax.random.key(0), 3, 6, 4, 2, 12)
        plain = jax.vmap(lambda x: encode_routed((model, routers), x, None, None)[0])(pixels)
        return plain, surgery.encode_corrected(encode_routed, (model, routers), modules, pixels)[0]

    plain, corrected = run(tiny.setting().unlabeled.inputs)
    np.testing.assert_allclose(plain, corrected, atol=1e-6)


def test_modules_of_equal_size_as_published():
    shallow = jax.eval_shape(lambda: surgery.init(jax.random.key(0), 1, 512, 304))
    deep = jax.eval_shape(lambda: surgery.init(jax.random.key(0), 1, 512, 16, 12, 768))
    for modules in (shallow, deep):
        assert sum(leaf.size for leaf in jax.tree.leaves(modules)) == 311_296


def test_deep_surgery_needs_a_network():
    with pytest.raises(ValueError, match="encode"):
        surgery.aligner(SurgeryConfig(deep=True))
