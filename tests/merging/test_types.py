"""Every public function of merging: float64, bfloat16 and float16, and sizes 0 and 1.

Inputs lie on a grid that all types represent, so each result is that of float32 up to the rounding
of its own type.
"""

from __future__ import annotations

import inspect
import types
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import merging
from jaxmethods.merging import analysis
from jaxmethods.merging.adaptive import (
    adamerging,
    adaptation,
    merged_modules,
    routers,
    surgery,
    wemoe,
)
from jaxmethods.merging.config import AdaMergingConfig, SurgeryConfig, WEMoEConfig
from jaxmethods.numerics import order_statistics
from tests.merging import tiny
from tests.programs import once, quick

TASKS = 3


def draw(shape, seed=0, scale=1.0):
    """Multiples of 1/64 in [-1, 1]: exact in every type."""
    rng = np.random.default_rng(seed)
    return np.round(64 * scale * rng.uniform(-1, 1, shape)) / 64


@jax.tree_util.register_pytree_node_class
class Given:
    """The same inputs in one type."""

    def tree_flatten(self):
        values = vars(self).copy()
        return (values,), values.pop("dtype")

    @classmethod
    def tree_unflatten(cls, dtype, children):
        given = object.__new__(cls)
        vars(given).update(children[0], dtype=dtype)
        return given

    def __init__(self, dtype):
        self.dtype = dtype
        self.key = jax.random.key(0)
        base = {"bias": draw(6, 1), "weight": draw((4, 6), 2), "scale": draw((), 3)}
        moves = {
            name: draw((TASKS, *x.shape), 4 + i, 0.5) for i, (name, x) in enumerate(base.items())
        }
        self.base = {name: self.array(x) for name, x in base.items()}
        self.stack = {name: self.array(x + moves[name]) for name, x in base.items()}
        self.tau = {name: self.array(moves[name]) for name in base}
        self.one, self.other = (jax.tree.map(lambda x, i=i: x[i], self.stack) for i in range(2))
        self.mlp = {
            "fc1": {"weight": self.array(draw((8, 6), 7)), "bias": self.array(draw(8, 8))},
            "fc2": {"weight": self.array(draw((6, 8), 9)), "bias": self.array(draw(6, 10))},
        }
        self.mlp_tau = jax.tree.map(
            lambda x: self.array(draw((TASKS, *x.shape), x.size, 0.5)), self.mlp
        )
        self.tokens = self.array(draw((4, 5, 6), 11))
        self.routing = jnp.asarray(draw((4, TASKS), 12), jnp.float32)
        self.router = routers.init(self.key, 6, TASKS)
        self.logits = self.array(4 * draw((TASKS, 4, 5), 13))
        self.data = adaptation.unlabeled([self.array(draw((4, 6), 14 + t)) for t in range(TASKS)])
        self.heads = adaptation.stack_heads(
            [self.array(draw((3 + t, 6), 17 + t)) for t in range(TASKS)]
        )
        self.modules = surgery.init(self.key, TASKS, 6, 2)
        self.modules = self.modules._replace(
            up=jnp.asarray(draw(self.modules.up.shape, 20), jnp.float32)
        )
        self.features = self.array(draw((TASKS, 4, 6), 21))

    def array(self, values):
        return jnp.asarray(values, self.dtype)

    def ada(self):
        return adamerging.Batch(self.base, self.tau, self.data, self.heads)

    def surgery_batch(self):
        data = self.data._replace(inputs=self.features)
        return surgery.Batch(data, surgery.Targets(self.data.inputs))


def head(params, inputs, own):
    logits = (inputs @ params["weight"].T) @ own.weights[:, :4].T
    return jnp.where(own.classes, logits, -jnp.inf)


def fisher_logits(params, inputs):
    return inputs.astype(params["weight"].dtype) @ params["weight"].T


def grams(g):
    inputs = g.array(draw((TASKS, 20, 6), 30))
    return {"weight": merging.gram(inputs)}


def mlp(strategy):
    return lambda g: merged_modules.merged_mlp(
        jax.nn.relu, g.mlp, g.mlp_tau, g.tokens, g.routing, strategy, block=3
    )


def layered(tree):
    return jax.tree.map(lambda x: x[None], tree)


def whole_step(method, batch, key):
    state, metrics = jax.jit(method.step)(method.init(key, batch), batch)
    return state._replace(key=None), metrics


CALLS = {
    "analogy": lambda g: merging.analogy(g.base, g.one, g.other, 0.5),
    "apply_task_vectors": lambda g: merging.apply_task_vectors(g.base, g.tau, 0.3),
    "average": lambda g: merging.average(g.stack, jnp.asarray([0.3, 0.5, 0.4]), normalize=True),
    "breadcrumbs": lambda g: merging.breadcrumbs(g.tau, 0.6, 0.1),
    "check_finite": lambda g: merging.check_finite(g.stack),
    "coefficients_by_name": lambda g: merging.coefficients_by_name(g.base, [("bias", 0.3)]),
    "combine": lambda g: merging.combine(g.base, g.stack, jnp.asarray([0.1, 0.2, 0.3])),
    "concrete_mask": lambda g: merging.concrete_mask(
        jnp.asarray(0.5 + draw((4, 6), 1, 0.4)), g.base["weight"]
    ),
    "dare": lambda g: merging.dare(g.key, g.tau, 0.3),
    "dare_mask": lambda g: merging.dare_mask(g.key, g.tau, 0.3),
    "dare_ties": lambda g: merging.dare_ties(g.key, g.base, g.stack, 0.3, density=0.5),
    "dare_with_mask": lambda g: merging.dare_with_mask(
        g.tau, merging.dare_mask(g.key, g.tau, 0.3), 0.3
    ),
    "della": lambda g: merging.della(g.key, g.tau),
    "fisher_diagonal": lambda g: [
        merging.fisher_diagonal(
            fisher_logits, {"weight": g.base["weight"]}, g.array(draw((6, 6), 22)), chunk=c, kind=k
        )
        for c, k in ((1, "exact"), (2, "exact"), (2, "batch"))
    ],
    "fisher_merge": lambda g: merging.fisher_merge(
        g.stack, jax.tree.map(jnp.square, g.tau), coefficients=jnp.asarray([0.2, 0.5, 0.3])
    ),
    "gram": lambda g: merging.gram(g.tokens),
    "iso_c": lambda g: merging.iso_c(g.base, g.stack, 0.5),
    "magnitude_prune": lambda g: merging.magnitude_prune(g.tau, 0.6),
    "model_stock": lambda g: merging.model_stock(g.base, g.stack),
    "pcb": lambda g: merging.pcb(g.base, g.stack, 0.5),
    "regmean": lambda g: merging.regmean(g.stack, grams(g)),
    "slerp": lambda g: merging.slerp(g.one, g.other, 0.3),
    "stack_trees": lambda g: merging.stack_trees([g.one, g.other]),
    "task_arithmetic": lambda g: merging.task_arithmetic(g.base, g.stack),
    "task_vectors": lambda g: merging.task_vectors(g.base, g.stack),
    "ties": lambda g: [
        merging.ties(g.base, g.stack, density=0.4, merge=merge, scope=scope, flavor=flavor)
        for merge, scope, flavor in (
            ("sum", "global", "paper"),
            ("mean", "leaf", "paper"),
            ("max", "global", "paper"),
            ("sum", "global", "mergekit"),
        )
    ],
    "ties_split": lambda g: merging.ties_split(g.tau, 0.4),
    "tsv_merge": lambda g: merging.tsv_merge(g.base, g.stack, 0.5),
    "adamerging.adapter": lambda g: whole_step(
        adamerging.adapter(head, AdaMergingConfig(batch_size=2)), g.ada(), g.key
    ),
    "adamerging.initial_coefficients": lambda g: [
        adamerging.initial_coefficients(g.base, TASKS, AdaMergingConfig(layerwise=layerwise))
        for layerwise in (True, False)
    ],
    "adamerging.loss": lambda g: adamerging.loss(
        jnp.full(TASKS, 0.3, jnp.float32), g.ada(), g.data.inputs, head, AdaMergingConfig()
    ),
    "adamerging.merged": lambda g: adamerging.merged(
        jnp.full(TASKS, 0.3, jnp.float32), g.ada(), AdaMergingConfig()
    ),
    "adaptation.accuracy": lambda g: adaptation.accuracy(
        g.logits, jnp.zeros((TASKS, 4), jnp.int32), jnp.asarray([4, 3, 2], jnp.int32)
    ),
    "adaptation.classify": lambda g: adaptation.classify(
        g.features, g.heads, jnp.asarray(1.0, jnp.float32)
    ),
    "adaptation.draw": lambda g: adaptation.draw(g.key, g.data, 2),
    "adaptation.draw_indices": lambda g: adaptation.draw_indices(g.key, g.data, 2),
    "adaptation.entropy": lambda g: adaptation.entropy(g.logits),
    "adaptation.objective": lambda g: adaptation.objective(g.logits, diversity=0.5),
    "adaptation.stack_heads": lambda g: g.heads,
    "adaptation.take": lambda g: adaptation.take(
        g.features, jnp.asarray([[0, 1]] * TASKS, jnp.int32)
    ),
    "adaptation.unlabeled": lambda g: g.data,
    "analysis.critical_modules": lambda g: [
        ["bias", "weight"].index(name)
        for name in analysis.critical_modules(g.base, g.stack, {"bias": "bias", "weight": "weight"})
    ],
    "analysis.variation": lambda g: analysis.variation(g.base, g.stack, {"all": "."}),
    "merged_modules.apply_merged": lambda g: merged_modules.apply_merged(
        lambda p, x: x @ p["fc1"]["weight"].T, g.mlp, g.mlp_tau, g.tokens, g.routing
    ),
    "merged_modules.choose": lambda g: merged_modules.choose(2, 3, 4, 5, 6)[1:],
    "merged_modules.fused_mlp": mlp("fused"),
    "merged_modules.in_blocks": mlp("blocks"),
    "merged_modules.merge_weights": lambda g: merged_modules.merge_weights(
        g.mlp, g.mlp_tau, g.routing[0]
    ),
    "merged_modules.merged_mlp": lambda g: [
        mlp(strategy)(g) for strategy in ("merge", "expertwise")
    ],
    "merged_modules.mix": lambda g: merged_modules.mix(g.routing, g.mlp_tau["fc1"]["weight"]),
    "merged_modules.sum_of_blocks": lambda g: merged_modules.sum_of_blocks(
        jax.nn.relu,
        3,
        False,
        layered(g.mlp),
        layered(g.mlp_tau),
        g.tokens,
        g.routing,
        jnp.int32(0),
    ),
    "merged_modules.with_gradient_of": lambda g: jax.grad(
        lambda c: jnp.sum(
            merged_modules.with_gradient_of(merged_modules.mix, merged_modules.mix)(
                c, g.mlp_tau["fc1"]["bias"]
            )
        )
    )(g.routing),
    "routers.apply": lambda g: routers.apply(g.router, g.tokens),
    "routers.coefficients": lambda g: [
        routers.coefficients(g.router, g.tokens, groups)
        for groups in (None, 2, jnp.asarray([0, 1, 0, 1], jnp.int32))
    ],
    "routers.init": lambda g: routers.init(g.key, 6, TASKS, encoding=4),
    "routers.layer_encodings": lambda g: routers.layer_encodings(3, 4),
    "surgery.aligner": lambda g: whole_step(
        surgery.aligner(SurgeryConfig(rank=2, batch_size=2)), g.surgery_batch(), g.key
    ),
    "surgery.correct": lambda g: surgery.correct(
        g.features[0], (g.modules.down[0], g.modules.up[0])
    ),
    "surgery.correct_features": lambda g: surgery.correct_features(g.modules, g.features),
    "surgery.encode_corrected": lambda g: surgery.encode_corrected(
        lambda model, x, correct, corrections: (correct(x, corrections), x[None]),
        None,
        g.modules._replace(block_down=g.modules.down, block_up=g.modules.up),
        g.features,
    ),
    "surgery.init": lambda g: surgery.init(g.key, TASKS, 6, 2, 2, 4),
    "surgery.loss": lambda g: surgery.loss(
        g.modules,
        None,
        g.features,
        surgery.Targets(g.data.inputs),
        SurgeryConfig(),
    ),
}
"""Of what takes arrays; a vision tower with experts is below."""
ON_A_TOWER = {"adapter", "fold", "forward", "init_routers", "loss", "prune_routers", "upcycle"}
ON_THE_HOST = {"analysis.critical_modules", "check_finite", "merged_modules.choose"}
LOW = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}
TOLERANCE = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
KINDS = ["float32 under x64", "float64", "bfloat16", "float16"]


def test_every_public_function_is_tried():
    functions = {n for n in merging.__all__ if inspect.isroutine(getattr(merging, n))}
    functions -= {"ewemoe"}  # makes a config
    functions |= {n for n in merging.__all__ if hasattr(getattr(merging, n), "lower")}
    modules = [getattr(merging, n) for n in merging.__all__]
    for module in (m for m in modules if isinstance(m, types.ModuleType)):
        name = module.__name__.rpartition(".")[2]
        own = {
            n
            for n, value in inspect.getmembers(module, callable)
            if not n.startswith("_")
            and not inspect.isclass(value)
            and getattr(value, "__module__", "") == module.__name__
        }
        if module is wemoe:
            assert own == ON_A_TOWER
        else:
            functions |= {f"{name}.{n}" for n in own}
    assert functions == CALLS.keys()


@once
def inputs(dtype):
    return Given(dtype)


def called(name, dtype):
    """Compiled whole, where no value is looked at on the host."""
    call = CALLS[name] if name in ON_THE_HOST else jax.jit(CALLS[name])
    return call(inputs(dtype))


@cache
def reference(name):
    return called(name, jnp.float32)


@pytest.mark.parametrize(
    "kind",
    quick(["bfloat16", "float16", "float32 under x64", "float64"], "bfloat16"),
)
@pytest.mark.parametrize(
    "name",
    quick(
        CALLS,
        *("dare", "fisher_merge", "regmean", "task_arithmetic", "ties", "slerp"),
        *("adamerging.loss", "merged_modules.merge_weights", "routers.coefficients"),
        *("surgery.loss",),
    ),
)
def test_results_are_those_of_float32(name, kind):
    right = reference(name)
    if kind in LOW:
        found = called(name, LOW[kind])
    else:
        with jax.enable_x64(True):
            found = called(name, jnp.float64 if kind == "float64" else jnp.float32)
    tolerance = TOLERANCE.get(kind, 1e-5)
    assert jax.tree.structure(found) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape
        if kind == "float32 under x64":
            assert one.dtype == other.dtype
        scale = np.abs(np.where(np.isfinite(other), other, 0)).max(initial=1e-3)
        np.testing.assert_allclose(
            one.astype(np.float64),
            other.astype(np.float64),
            rtol=0,
            atol=tolerance * scale,
        )


def tower(dtype):
    """Every function of `wemoe` on a tower of one type, in one program."""
    setting = tiny.setting(images=2)
    given = setting.base, setting.stack, setting.projection, setting.unlabeled, setting.heads
    cast = jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x, given)
    return jax.jit(run_tower)(*cast, jax.random.key(0))


def run_tower(base, stack, projection, unlabeled, heads, key):
    config = WEMoEConfig(batch_size=2, prune=0.5, prune_router=0.5, layer_encoding=4)
    model = wemoe.upcycle(base, stack, config)
    batch = wemoe.Batch(model, unlabeled, heads, projection, jnp.float32(1))
    routers_ = wemoe.prune_routers(wemoe.init_routers(key, tiny.VISION, 3, config), config)
    pixels = batch.unlabeled.inputs
    out = wemoe.forward(model, routers_, tiny.VISION, config, pixels[0], projection=projection)
    state, metrics = whole_step(wemoe.adapter(tiny.VISION, config), batch, key)
    value, (terms, _) = wemoe.loss(routers_, batch, pixels, tiny.VISION, config)
    folded = wemoe.fold(model, {"mlp": jnp.asarray([0.1, 0.2, 0.3], jnp.float32)})
    return {
        "features": out.vision.features,
        "routing": out.coefficients,
        "routers": state.routers,
        "loss": (metrics["loss"], value, terms),
        "folded": folded["encoder"]["layers"]["mlp"],
    }


@pytest.fixture(scope="module")
def tower_in_float32():
    return tower(jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_with_experts_has_the_results_of_float32(kind, tower_in_float32):
    if kind in LOW:
        found = tower(LOW[kind])
    else:
        with jax.enable_x64(True):
            found = tower(jnp.float64 if kind == "float64" else jnp.float32)
    tolerance = {"bfloat16": 0.05, "float16": 0.01}.get(kind, 1e-4)  # of a whole network

    def compare(one, other):
        assert kind != "float32 under x64" or one.dtype == other.dtype
        other = np.asarray(other, np.float64)
        np.testing.assert_allclose(
            np.asarray(one, np.float64), other, rtol=0, atol=tolerance * np.abs(other).max()
        )

    jax.tree.map(compare, found, tower_in_float32)


def test_weights_of_float64_are_merged_in_float64():
    with jax.enable_x64(True):
        base = {"w": jnp.asarray([1.0, 2.0, 3.0])}
        moves = jnp.asarray([[1e-9, 3e-9, -2e-9], [2e-9, -1e-9, -5e-9]])
        stack = {"w": base["w"] + moves}
        found = merging.task_arithmetic(base, stack, 0.1)["w"]
        np.testing.assert_allclose(found - base["w"], 0.1 * moves.sum(0), rtol=1e-6)


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_thresholds_of_float64_are_not_rounded(scope):
    """All magnitudes are one float32."""
    with jax.enable_x64(True):
        tau = {"w": 1 + 1e-12 * jnp.arange(10.0)[None]}
        kept = merging.ties_split(tau, 0.3, scope)["w"]
        np.testing.assert_array_equal(kept[0] != 0, np.arange(10) >= 6)
        pruned = merging.magnitude_prune(tau, 0.5)["w"]
        np.testing.assert_array_equal(pruned[0] != 0, np.arange(10) >= 5)


@pytest.mark.parametrize("k", [1, 30, 77, 100])
def test_order_statistics_of_float64_equal_a_sort(k):
    values = 1 + 1e-14 * np.random.default_rng(0).normal(size=(2, 100)).round(1)
    values[:, ::9] *= -1e-200
    right = np.sort(values, axis=1)[:, k - 1]
    with jax.enable_x64(True):
        leaf = jnp.asarray(values)
        found = order_statistics.kth_smallest([leaf[:, :40], leaf[:, 40:]], k)
        parts = [leaf[:, :40], leaf[:, 40:]]
        streamed = order_statistics.streamed_kth_smallest(lambda: parts, [k])[0]
    np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(streamed, right)


def test_masks_do_not_depend_on_x64():
    tau = {"w": jnp.ones((2, 50, 4))}
    key = jax.random.key(1)
    masks = merging.dare_mask(key, tau, 0.3), merging.della(key, tau)["w"] != 0
    with jax.enable_x64(True):
        again = merging.dare_mask(key, tau, 0.3), merging.della(key, tau)["w"] != 0
    jax.tree.map(np.testing.assert_array_equal, again, masks)


@pytest.mark.parametrize("dtype", LOW.values(), ids=LOW)
def test_fisher_information_of_many_samples_does_not_stop_growing(dtype):
    """In bfloat16 a sum of ones is 256 for ever."""
    inputs = jnp.ones((1024, 1), dtype)
    params = {"w": jnp.zeros((2, 1), dtype)}
    for kind in ("exact", "batch"):
        found = merging.fisher_diagonal(
            lambda p, x: (x @ p["w"].T).astype(jnp.float32), params, inputs, chunk=1, kind=kind
        )
        assert found["w"].dtype == jnp.float32
        np.testing.assert_allclose(found["w"], 0.25 if kind == "exact" else 0.0, atol=1e-6)


def test_coefficients_of_routing_are_not_rounded_with_bfloat16_task_vectors():
    """0.3 is 0.30078 in bfloat16; sixteen equal task vectors of 16 show it."""
    tau = jnp.full((16, 1), 16.0, jnp.bfloat16)
    c = jnp.full(16, 0.3, jnp.float32)
    np.testing.assert_allclose(merged_modules.mix(c, tau), 0.3 * 256, rtol=1e-6)
    merged = merged_modules.merge_weights({"w": jnp.zeros(1, jnp.float32)}, {"w": tau}, c)["w"]
    np.testing.assert_allclose(merged, 0.3 * 256, rtol=1e-6)


MERGES = {
    "average": lambda base, stack: merging.average(stack),
    "task_arithmetic": merging.task_arithmetic,
    "ties": merging.ties,
    "ties per leaf": lambda base, stack: merging.ties(base, stack, scope="leaf", merge="max"),
    "ties, mergekit": lambda base, stack: merging.ties(base, stack, flavor="mergekit"),
    "dare": lambda base, stack: merging.apply_task_vectors(
        base, merging.dare(jax.random.key(0), merging.task_vectors(base, stack))
    ),
    "dare, ties": lambda base, stack: merging.dare_ties(jax.random.key(0), base, stack),
    "breadcrumbs": lambda base, stack: merging.apply_task_vectors(
        base, merging.breadcrumbs(merging.task_vectors(base, stack), 0.5, 0.2)
    ),
    "della": lambda base, stack: merging.apply_task_vectors(
        base, merging.della(jax.random.key(0), merging.task_vectors(base, stack))
    ),
    "prune": lambda base, stack: merging.apply_task_vectors(
        base, merging.magnitude_prune(merging.task_vectors(base, stack), 0.5)
    ),
    "ties_split": lambda base, stack: merging.apply_task_vectors(
        base, merging.ties_split(merging.task_vectors(base, stack))
    ),
    "pcb": merging.pcb,
    "model_stock": merging.model_stock,
    "slerp": lambda base, stack: merging.slerp(base, jax.tree.map(lambda x: x[0], stack), 0.3),
    "tsv": merging.tsv_merge,
    "iso_c": merging.iso_c,
    "fisher": lambda base, stack: merging.fisher_merge(stack, jax.tree.map(jnp.abs, stack)),
    "regmean": lambda base, stack: merging.regmean(
        stack, {"one": jnp.ones((len(stack["one"]), 1, 1))}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("name", MERGES)
def test_leaves_of_no_and_of_one_entry(name, tasks):
    base = {
        "none": jnp.zeros((0, 3)),
        "empty": jnp.zeros(0),
        "number": jnp.asarray(2.0),
        "one": jnp.ones((1, 1)),
        "ids": jnp.arange(3)[None],
    }
    moved = {**base, "number": jnp.asarray(2.5), "one": jnp.full((1, 1), 1.5)}
    other = {**base, "number": jnp.asarray(1.9), "one": jnp.full((1, 1), 0.5)}
    merged = MERGES[name](base, merging.stack_trees([moved, other][:tasks]))
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, base)
    for value in jax.tree.leaves(merged):
        assert np.isfinite(value).all()
    np.testing.assert_array_equal(merged["ids"], base["ids"])


@pytest.mark.parametrize("name", sorted(MERGES.keys() - {"regmean"}))
def test_trees_without_an_entry_come_out_as_they_are(name):
    base = {"empty": jnp.zeros((0, 2)), "ids": jnp.arange(3)}
    merged = MERGES[name](base, merging.stack_trees([base, base]))
    jax.tree.map(np.testing.assert_array_equal, merged, base)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 1), (2, 1, 3)])
@pytest.mark.parametrize("strategy", ["merge", "blocks", "expertwise", "fused"])
def test_one_expert_one_token_and_one_image(strategy, sizes):
    tasks, batch, tokens = sizes
    base = {"fc1": {"weight": draw((3, 1)), "bias": draw(3)}} | {
        "fc2": {"weight": draw((1, 3), 1), "bias": draw(1, 2)}
    }
    base = jax.tree.map(jnp.asarray, base)
    tau = jax.tree.map(lambda x: jnp.asarray(draw((tasks, *x.shape), 3)), base)
    x, c = jnp.asarray(draw((batch, tokens, 1), 4)), jnp.asarray(draw((batch, tasks), 5))
    mlp = jax.jit(merged_modules.merged_mlp, static_argnums=(0, 5))
    found = mlp(jax.nn.relu, base, tau, x, c, strategy)
    for one, inputs, own in zip(found, x, c, strict=True):
        w = merged_modules.merge_weights(base, tau, own)
        hidden = jax.nn.relu(inputs @ w["fc1"]["weight"].T + w["fc1"]["bias"])
        right = hidden @ w["fc2"]["weight"].T + w["fc2"]["bias"]
        np.testing.assert_allclose(one, right, atol=1e-6)


def test_one_class_one_input_and_one_task():
    data = adaptation.unlabeled([jnp.ones((1, 2))])
    heads = adaptation.stack_heads([jnp.ones((1, 2))])
    inputs = adaptation.draw(jax.random.key(0), data, 1)
    logits = adaptation.classify(inputs, heads, jnp.float32(1))
    np.testing.assert_array_equal(adaptation.objective(logits, diversity=0.5), [0])
    zero = adaptation.classify(jnp.zeros((1, 1, 2)), heads, jnp.float32(1))
    np.testing.assert_array_equal(zero, [[[0]]])
    labels = jnp.zeros((1, 1), jnp.int32)
    np.testing.assert_array_equal(adaptation.accuracy(logits, labels, data.counts), [1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: merging.gram(jnp.zeros((2, 0, 3))), "inputs: expected at least one row"),
        (
            lambda: merging.fisher_diagonal(
                fisher_logits, {"weight": jnp.ones((2, 3))}, jnp.zeros((0, 3))
            ),
            "chunk: expected a divisor of 0 inputs",
        ),
        (
            lambda: merging.average({"w": jnp.ones((2, 3))}, jnp.asarray([1.0, -1.0]), True),
            r"weights: expected a sum that isn't 0.*\[1.0, -1.0\]",
        ),
        (
            lambda: merging.fisher_merge(
                {"w": jnp.ones((2, 3))}, {"w": jnp.ones((2, 3))}, coefficients=[0.5, -0.5]
            ),
            "weights: expected a sum that isn't 0",
        ),
        (
            lambda: merging.dare_ties(
                jax.random.key(0), {"w": jnp.ones(3)}, {"w": jnp.ones((2, 3))}, 1.0
            ),
            "p: 1 drops everything",
        ),
        (lambda: merging.dare(jax.random.key(0), {"w": jnp.ones((2, 3))}, np.float32(2)), "p: exp"),
        (lambda: merging.breadcrumbs({"w": jnp.ones((2, 3))}, 0.5, -0.1), "gamma: expected"),
        (
            lambda: routers.coefficients(
                routers.init(jax.random.key(0), 3, 2), jnp.ones((2, 1, 3)), 0
            ),
            "groups: expected a divisor of the 2 samples, got 0",
        ),
    ],
)
def test_what_has_no_value_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
