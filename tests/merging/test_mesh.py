"""Experts over `fsdp`, tasks over `data`: eight devices give the models of one."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxmethods import merging
from jaxmethods.config import MeshConfig, validate
from jaxmethods.devices.sharding import make_mesh, put, shardings
from jaxmethods.merging.adaptive import adaptation, surgery, wemoe
from jaxmethods.merging.config import SurgeryConfig, WEMoEConfig
from jaxmethods.merging.recipes import comparison as run
from jaxmethods.merging.static import trees
from jaxmethods.models.clip import vit
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.stages import Recipe
from jaxmethods.training import runner, train_stage
from tests.merging import tiny


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=4))


def spread(tree, rules, mesh):
    return put(tree, shardings(tree, rules, 1, mesh, seed_axes=None))


def assert_close(many, one, **tolerances):
    for left, right in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        if not jax.dtypes.issubdtype(left.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(left, right, **tolerances)


@pytest.mark.slow
def test_static_merges(mesh):
    stack = spread(tiny.setting(tasks=4).stack, trees.STACK_RULES, mesh)
    assert jax.tree.leaves(stack)[0].sharding.spec[0] == "fsdp"
    base = spread(tiny.setting(tasks=4).base, (), mesh)
    for merge in (merging.task_arithmetic, merging.ties):
        assert_close(
            merge(base, stack),
            merge(tiny.setting(tasks=4).base, tiny.setting(tasks=4).stack),
            atol=1e-6,
        )


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["sample", "batch"])
def test_routed_towers_and_their_adaptation(mesh, routing):
    config = WEMoEConfig(routing=routing, strategy="blocks", batch_size=4, learning_rate=1e-2)
    method = wemoe.adapter(tiny.VISION, config)
    batch = tiny.wemoe_batch(tiny.setting(tasks=4), config)
    state = method.init(jax.random.key(0), batch)
    shared = spread(batch, wemoe.RULES, mesh)
    assert jax.tree.leaves(shared.model.tau)[0].sharding.spec[:2] == (None, "fsdp")
    assert shared.unlabeled.inputs.sharding.spec[0] == "data"

    @jax.jit
    def run(state, batch):
        state, metrics = method.step(state, batch)
        pixels = batch.unlabeled.inputs.reshape(-1, 8, 8, 3)
        out = wemoe.forward(batch.model, state.routers, tiny.VISION, config, pixels)
        return state.routers, metrics, out.vision.features, out.coefficients

    many = run(spread(state, wemoe.RULES, mesh), shared)
    assert_close(many, run(state, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_deep_surgery(mesh):
    def encode(model, pixels, correct, corrections):
        out = vit.forward(
            model,
            tiny.VISION,
            pixels,
            hooks=vit.Hooks(after=correct),
            per_layer=corrections,
            taps=("token_means",),
        )
        return out.features, out.encoded.token_means

    merged = merging.task_arithmetic(tiny.setting(tasks=4).base, tiny.setting(tasks=4).stack, 0.3)
    features, means = jax.jit(jax.vmap(lambda p, x: encode(p, x, None, None)))(
        tiny.setting(tasks=4).stack, tiny.setting(tasks=4).unlabeled.inputs
    )
    targets = surgery.Targets(features, means.swapaxes(1, 2))
    batch = surgery.Batch(adaptation.Unlabeled(*tiny.setting(tasks=4).unlabeled), targets, merged)
    method = surgery.aligner(SurgeryConfig(deep=True, rank=4, batch_size=4), encode)
    state = method.init(jax.random.key(0), batch)
    shared = spread(state, surgery.RULES, mesh), spread(batch, surgery.RULES, mesh)
    assert shared[0].modules.block_down.sharding.spec[0] == "data"
    assert shared[0].optimizer[0].mu.down.sharding.spec[0] == "data"
    step = jax.jit(method.step)
    assert_close(step(*shared), step(state, batch), rtol=1e-4, atol=1e-5)


STEPS = {"steps": 2, "batch_size": 4}
PIPELINE = {
    "method": "merging",
    "network": {"width": 8, "depth": 1, "heads": 2, "patch": 4, "features": 6},
    # Adam's first steps are signs of gradients, those of zero but for rounding too.
    "base": {"optimizer": "sgd", "learning_rate": 1e-2, "labeled": 0.5, **STEPS},
    "experts": {"optimizer": "sgd", "learning_rate": 1e-2, **STEPS},
    "wemoe": STEPS,
    "adamerging": STEPS,
    "ewemoe": STEPS,
    "surgery": STEPS,
    "training": {"log_every": 2, "evaluate_every": 2, "checkpoint_every": 2},
}


def train(folder, mesh):
    """Results of the first stages of the pipeline, two that train and one that computes."""
    values = {**PIPELINE, "data": {"path": str(folder)}, "mesh": mesh}
    config = validate(run.Run, values, "test")
    out = RunFolder(folder / f"run{len(list(folder.iterdir()))}")
    return runner.run(Recipe(run.recipe(config).stages[:3]), config, out)


@pytest.mark.slow
def test_the_pipeline_on_a_mesh_gives_the_models_of_one_device(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for name in "abcd":
        images = random.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
        labels = np.arange(8) % 2
        np.savez(
            tmp_path / f"{name}.npz",
            train_images=images[:8],
            train_labels=labels,
            test_images=images[8:],
            test_labels=labels,
            class_names=np.array(["even", "odd"]),
        )
    batches = []
    compile_chunk = train_stage.compile_chunk

    def recorded(method, state, batch, *others):
        batches.append(batch)
        return compile_chunk(method, state, batch, *others)

    with monkeypatch.context() as patch:
        patch.setattr(train_stage, "compile_chunk", recorded)
        many = train(tmp_path, {"data": 2, "fsdp": 2})
    one = train(tmp_path, {})
    for name in ("base", "experts", "features"):
        assert_close(many[name], one[name], rtol=1e-4, atol=1e-5)
    base, experts = batches
    assert parts(many["experts"]) == parts(experts.images.images) == {4}
    assert parts(base.images.images) == {2}
    assert parts(many["base"].base) == {1}


def parts(tree):
    """Into how many the leaves of a tree are split."""
    return {leaf.size // leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(tree)}
