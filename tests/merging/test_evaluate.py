"""The comparison of methods: its numbers by hand, and its limits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import merging
from jaxmethods.merging import evaluate
from jaxmethods.merging.adaptive import adamerging, adaptation, surgery, wemoe
from jaxmethods.merging.config import AdaMergingConfig, WEMoEConfig
from jaxmethods.merging.evaluate import METHODS
from jaxmethods.merging.finetuning import Base, Images, to_pixels
from jaxmethods.models.clip import vit
from tests.merging import tiny

pytestmark = pytest.mark.slow  # all methods at once take long to compile

BOTH = ("mlp", "self_attn")
SCALE = 10.0


def contestants(setting, coefficient, routed, seed=0):
    """Models as they are before anything is adapted; five images of the first task, then more."""
    tasks, width = len(setting.heads.classes), setting.heads.weights.shape[-1]
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (tasks, 5 + tasks, 8, 8, 3), dtype=np.uint8)
    labels = random.integers(0, 4, (tasks, 5 + tasks)).astype(np.int32)
    test = Images(
        jnp.asarray(images), jnp.asarray(labels), 5 + jnp.arange(tasks), setting.heads.classes
    )
    tau = merging.task_vectors(setting.base, setting.stack)
    config = AdaMergingConfig(initial=coefficient)
    batch = adamerging.Batch(setting.base, tau, setting.unlabeled, None)
    merged = merging.task_arithmetic(setting.base, setting.stack, coefficient)

    def encoded(tower, images):
        out = evaluate.encode(tower, setting.projection, tiny.VISION, to_pixels(images))
        return evaluate.Encoded(*out)

    merges = [
        merging.average(setting.stack),
        merged,
        merging.ties(setting.base, setting.stack, density=1.0, coefficients=coefficient),
        adamerging.merged(
            adamerging.initial_coefficients(setting.base, tasks, config), batch, config
        ),
    ]
    models = {}
    for name, config in routed.items():
        routers = wemoe.init_routers(jax.random.key(1), tiny.VISION, tasks, config)
        still = jax.tree.map(jnp.zeros_like, routers)
        constant = {m: still[m]._replace(bias=routers[m].bias) for m in routers}
        models[name] = wemoe.upcycle(setting.base, setting.stack, config), constant
    key = jax.random.key(2)
    return evaluate.Contestants(
        test,
        Base(setting.base, setting.projection),
        setting.heads,
        jax.vmap(encoded)(setting.stack, test.images),
        jax.vmap(encoded, (None, 0))(merged, test.images),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *merges),
        models,
        surgery.init(key, tasks, width, 2),
        surgery.init(key, tasks, width, 2, 2, tiny.VISION.hidden_size),
    )


def configs(coefficient, **options):
    routed = WEMoEConfig(coefficient=coefficient, modules=BOTH, **options)
    return {"wemoe": routed, "ewemoe": routed.model_copy(update={"shared_router": True})}


@pytest.fixture(scope="module")
def three():
    """Three tasks, coefficient 1/3: everything that is constant is the average."""
    setting, routed = tiny.setting(), configs(1 / 3)
    step = jax.jit(lambda batch: evaluate.measure(batch, tiny.VISION, routed, 4, SCALE))
    batch = contestants(setting, 1 / 3, routed)
    return step, setting, batch, step(batch)


def row(values, name):
    return np.asarray(values)[METHODS.index(name)]


def test_numbers_are_those_of_the_definition(three):
    _, setting, batch, results = three
    assert METHODS[0] == "base"

    @jax.jit
    def encode(tower, pixels):
        return vit.forward(
            tower, tiny.VISION, pixels, projection=setting.projection, taps=("token_means",)
        )

    for task in range(3):
        count = int(batch.test.counts[task])
        pixels = to_pixels(batch.test.images[task, :count])
        outs = [encode(tower, pixels) for tower in (setting.base, tiny.expert(setting, task))]
        for name, out in zip(("base", "individual"), outs, strict=True):
            padded = jnp.pad(out.features[None], ((task, 2 - task), (0, 0), (0, 0)))
            logits = adaptation.classify(padded, setting.heads, jnp.log(SCALE))[task]
            right = np.mean(np.argmax(logits, -1) == batch.test.labels[task, :count])
            np.testing.assert_allclose(row(results.accuracy, name)[task], right, atol=1e-6)
        means = [np.asarray(out.encoded.token_means) for out in outs]
        expected = np.abs(means[0] - means[1]).mean((1, 2))
        np.testing.assert_allclose(row(results.distance, "base")[task, :-1], expected, atol=1e-5)
        last = np.abs(np.asarray(outs[0].features - outs[1].features)).mean()
        np.testing.assert_allclose(row(results.distance, "base")[task, -1], last, atol=1e-5)


def test_an_expert_is_itself_and_zero_surgery_is_the_merged_model(three):
    results = three[-1]
    assert not row(results.distance, "individual").any()
    merged = row(results.distance, "task_arithmetic")
    for name in ("surgery", "surgery_v2"):
        np.testing.assert_allclose(row(results.distance, name), merged, atol=1e-6)
        np.testing.assert_array_equal(
            row(results.accuracy, name), row(results.accuracy, "task_arithmetic")
        )


def test_constant_routing_and_equal_coefficients_are_the_average(three):
    results = three[-1]
    average = row(results.distance, "average")
    assert average.min() > 1e-3
    for name in METHODS:
        if name not in ("base", "individual", "ties"):
            np.testing.assert_allclose(row(results.distance, name), average, atol=1e-5)
    for value in results.routing.values():
        np.testing.assert_allclose(value, 1 / 3, atol=1e-6)


def test_the_order_of_experts_does_not_matter(three):
    step, _, batch, results = three
    order = jnp.asarray([2, 0, 1])

    def by_task(tree):
        return jax.tree.map(lambda leaf: leaf[order], tree)

    def tau_by_task(model):
        return model._replace(tau=jax.tree.map(lambda leaf: leaf[:, order], model.tau))

    turned = step(
        batch._replace(
            test=by_task(batch.test),
            experts=by_task(batch.experts),
            merged=by_task(batch.merged),
            heads=by_task(batch.heads),
            routed={
                name: (tau_by_task(model), routers)
                for name, (model, routers) in batch.routed.items()
            },
            surgery=by_task(batch.surgery),
            surgery_v2=by_task(batch.surgery_v2),
        )
    )
    np.testing.assert_allclose(turned.distance, results.distance[:, order], atol=1e-5)
    np.testing.assert_array_equal(turned.accuracy, results.accuracy[:, order])


def test_zero_weights_are_the_base(three):
    step, setting, _, _ = three
    routed = configs(0.0)
    results = step(contestants(setting, 0.0, routed))
    base = row(results.distance, "base")
    for name in METHODS:
        if name not in ("average", "individual"):
            # Routed modules add 0 times the task vectors; plain merges are the base bit for bit.
            np.testing.assert_allclose(row(results.distance, name), base, atol=1e-6)
    for name in ("task_arithmetic", "ties", "adamerging"):
        place = evaluate.PLAIN.index(name)
        merged = contestants(setting, 0.0, routed).plain
        jax.tree.map(
            lambda leaf, origin, i=place: np.testing.assert_array_equal(leaf[i], origin),
            merged,
            setting.base,
        )


@pytest.mark.slow
def test_one_task_is_that_expert():
    """Bit for bit in plain merges. A routed module computes W_0 + 1 (W_1 - W_0), which is W_1
    where the sum doesn't round: so it does on the grid that these weights lie on."""
    setting = tiny.setting(tasks=1)
    routed = configs(1.0)
    batch = contestants(setting, 1.0, routed)
    expert = tiny.expert(setting, 0)
    for place in range(len(evaluate.PLAIN)):
        jax.tree.map(
            lambda leaf, one, i=place: np.testing.assert_array_equal(leaf[i], one),
            batch.plain,
            expert,
        )
    for model, _ in batch.routed.values():
        folded = wemoe.fold(model, dict.fromkeys(BOTH, jnp.ones(1)))
        jax.tree.map(np.testing.assert_array_equal, folded, expert)
    results = jax.jit(lambda batch: evaluate.measure(batch, tiny.VISION, routed, 4, SCALE))(batch)
    distance = np.delete(results.distance, METHODS.index("base"), axis=0)
    np.testing.assert_allclose(distance, 0.0, atol=1e-6)
