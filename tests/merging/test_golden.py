"""Published implementations' numbers, in float64 on their side.

Sizes are read from the arrays and files are found by the beginning of their names, so that other
sets of the same kind can be checked with JAXMETHODS_GOLDEN. What the arrays mean:
tests/golden/README.md.
"""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import merging
from jaxmethods.merging.adaptive import (
    adamerging,
    adaptation,
    merged_modules,
    routers,
    surgery,
    wemoe,
)
from jaxmethods.merging.adaptive.routers import Router
from jaxmethods.merging.config import AdaMergingConfig, SurgeryConfig, WEMoEConfig
from jaxmethods.merging.static import pcb, ties
from jaxmethods.merging.static.ties import Experts
from jaxmethods.models import clip
from jaxmethods.models.clip import vit
from tests.golden_files import FOLDER, golden_files, read

VALUE, GRADIENT = 2e-6, 1e-5
"""Largest error allowed, of the largest magnitude."""


def assert_relative(actual, expected, tolerance=VALUE, name=""):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=name)


def group(golden, prefix):
    """{"prefix/x": array} -> {"x": array}."""
    found = {
        k.removeprefix(f"{prefix}/"): v for k, v in golden.items() if k.startswith(prefix + "/")
    }
    assert found, prefix
    return found


def assert_tree(actual, golden, prefix, tolerance=VALUE):
    expected = group(golden, prefix)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_relative(actual[name], value, tolerance, f"{prefix}/{name}")


def number(text):
    """ "0p3" -> 0.3"""
    return float(text.replace("p", "."))


class Static:
    """A static_merging file."""

    def __init__(self, file):
        self.golden = read(file)
        self.base, self.stack = group(self.golden, "base"), group(self.golden, "finetuned")
        self.tau = merging.task_vectors(self.base, self.stack)

    def named(self, pattern):
        """Distinct groups whose names match, with what the pattern caught."""
        found = {}
        for name in self.golden:
            match = re.match(pattern + "/", name)
            if match:
                found[name[: match.end() - 1]] = match.groups()
        assert found, pattern
        return found.items()

    def joined(self, tree):
        return np.concatenate(
            [np.asarray(tree[k]).reshape(len(self.stack[k]), -1) for k in sorted(tree)], axis=1
        )

    def joined_one(self, tree):
        return np.concatenate([np.asarray(tree[k]).ravel() for k in sorted(tree)])


@pytest.fixture(scope="module", params=golden_files("merging", "static_merging"))
def static(request):
    return Static(request.param)


def test_average_and_task_arithmetic(static):
    assert_tree(jax.jit(merging.average)(static.stack), static.golden, "average")
    for name, (coefficient,) in static.named(r"task_arithmetic_(\d+p\d+)"):
        merged = merging.task_arithmetic(static.base, static.stack, number(coefficient))
        assert_tree(merged, static.golden, name)


def test_ties(static):
    golden, tau = static.golden, static.tau
    assert_relative(static.joined(tau), golden["ties/flat_task_vectors"])
    leaves = {k: Experts(jnp.asarray(static.base[k]), jnp.asarray(static.stack[k])) for k in tau}
    elections = ties.elections(list(leaves.values()), 0.2, "global")
    of = dict(zip(leaves, elections.values(), strict=True))
    limits = next(iter(of.values())).limits[:, None]
    trimmed = np.abs(static.joined(tau)) >= limits
    np.testing.assert_array_equal(trimmed, golden["ties/trim_mask"])
    signs = {k: ties.elected_sign(leaves[k], of[k]) for k in tau}
    np.testing.assert_array_equal(static.joined_one(signs), golden["ties/elected_sign"])
    split = ties.ties_split(tau, 20)
    assert_relative(static.joined(split), golden["ties/split_task_vectors"])
    zero = jax.tree.map(jnp.zeros_like, static.base)
    for merge in ("sum", "mean", "max"):
        vector = merging.ties(zero, tau, density=0.2, coefficients=1.0, merge=merge)
        assert_relative(static.joined_one(vector), golden[f"ties/merged_tv_{merge}"])
    for name, (merge, coefficient) in static.named(r"ties_([a-z]+)_lambda(\d+p\d+)"):
        merged = merging.ties(
            static.base, static.stack, density=0.2, coefficients=number(coefficient), merge=merge
        )
        assert_tree(merged, golden, name)


def test_dare(static):
    mask = group(static.golden, "dare/keep_mask")
    for name, (p,) in static.named(r"dare/rescaled_tv_p(\d+p\d+)"):
        assert_tree(merging.dare_with_mask(static.tau, mask, number(p)), static.golden, name)
    for name, (p, coefficient) in static.named(r"dare_ta_p(\d+p\d+)_lambda(\d+p\d+)"):
        sparse = merging.dare_with_mask(static.tau, mask, number(p))
        merged = merging.apply_task_vectors(static.base, sparse, number(coefficient))
        assert_tree(merged, static.golden, name)


def test_pcb(static):
    tau = {"all": static.golden["pcb/flat_task_vectors"]}
    (name,) = [name for name in static.golden if name.startswith("pcb/merged_tv_ratio")]
    ratio = number(name.removeprefix("pcb/merged_tv_ratio"))
    balanced = pcb.balance(tau, ratio)
    assert_relative(balanced.clipped["all"], static.golden["pcb/clamped"])
    assert_relative(balanced.scale["all"], static.golden["pcb/scale"])
    base = {"all": jnp.zeros(tau["all"].shape[1])}
    assert_relative(merging.pcb(base, tau, ratio, 1.0)["all"], static.golden[name])


def test_fisher(static):
    information = group(static.golden, "fisher/weights")
    merge = jax.jit(merging.fisher_merge, static_argnames="normalize")
    for normalize, name in [(True, "fisher_merged_norm"), (False, "fisher_merged_nonorm")]:
        assert_tree(merge(static.stack, information, normalize=normalize), static.golden, name)


def test_regmean(static):
    golden = static.golden
    inputs = group(golden, "regmean/inputs")
    grams = {f"{name}.weight": merging.gram(x) for name, x in inputs.items()}
    for name in inputs:
        assert_relative(grams[f"{name}.weight"], golden[f"regmean/gram/{name}"])
    for name, (alpha,) in static.named(r"regmean_ratio(\d+p\d+)"):
        assert_tree(merging.regmean(static.stack, grams, alpha=number(alpha)), golden, name)


def test_concrete_mask_and_slerp(static):
    golden = static.golden
    u, logits = golden["concrete/u"], golden["concrete/logits"]
    mask = merging.concrete_mask(u, logits, rescale=False)
    assert_relative(mask, golden["concrete/mask_tau0p5"])
    assert_relative(merging.concrete_mask(u, logits), golden["concrete/rescaled"])
    for name in [name for name in golden if name.startswith("slerp/t")]:
        one, other = static.base["a.weight"], static.stack["a.weight"][0]
        merged = merging.slerp(one, other, number(name.removeprefix("slerp/t")))
        assert_relative(merged, golden[name])


@pytest.mark.parametrize("file", golden_files("merging", "adamerging"))
@pytest.mark.parametrize("kind", ["task", "layer"])
def test_adamerging(file, kind):
    golden = read(file)
    base, stack = group(golden, "base"), group(golden, "finetuned")
    heads = adaptation.stack_heads([golden[k] for k in sorted_heads(golden, "head")])
    x = jnp.asarray(golden["x"])
    config = AdaMergingConfig(
        layerwise=kind == "layer",
        stacked=None,
        entropy_epsilon=1e-8,
        batch_size=x.shape[1],
        clamp=False,
    )

    def apply(params, x, head):
        h = jax.nn.relu(x @ params["fc1.weight"].T + params["fc1.bias"])
        h = h @ params["fc2.weight"].T + params["fc2.bias"]
        weights, classes = head
        logits = 4 * (h / jnp.linalg.norm(h, axis=-1, keepdims=True)) @ weights.T
        return jnp.where(classes, logits, -jnp.inf)

    data = adamerging.Batch(
        base, merging.task_vectors(base, stack), adaptation.unlabeled(list(x)), heads
    )

    def columns(tree):
        if kind == "task":
            return tree
        return jnp.stack([tree[name] for name in golden["layer/param_order"]], axis=1)

    method = adamerging.adapter(apply, config)
    state = method.init(jax.random.key(0), data)
    (loss, of_tasks), gradient = jax.jit(
        jax.value_and_grad(lambda c: adamerging.loss(c, data, x, apply, config), has_aux=True)
    )(state.coefficients)
    assert_relative(of_tasks, golden[f"{kind}/losses0"])
    assert_relative(loss, golden[f"{kind}/loss0"])
    assert_relative(columns(gradient), golden[f"{kind}/grad0"], GRADIENT)
    step = jax.jit(method.step)  # draws the whole batch, in some order
    for number in range(1, 4):
        state, _ = step(state, data)
        expected = golden[f"{kind}/lambda_after_{number}"]
        np.testing.assert_allclose(columns(state.coefficients), expected, rtol=0, atol=1e-6)


def sorted_heads(golden, name):
    found = [k for k in golden if k.startswith(f"{name}/")]
    return sorted(found, key=lambda k: int(k.split("/")[1]))


def router_of(golden, prefix):
    """Ours from the file's: depth 0 "weight", depth 1 "fc", depth 2 "fc1" and "fc2"."""
    found = {k: jnp.asarray(v) for k, v in group(golden, prefix).items()}
    if "weight" in found:
        return Router(None, None, None, found["weight"])
    if "fc.weight" in found:
        return Router(None, None, found["fc.weight"], found["fc.bias"])
    return Router(*(found[k] for k in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")))


def assert_router(actual, golden, prefix, tolerance=GRADIENT):
    expected = router_of(golden, prefix)
    for name, one, other in zip(Router._fields, actual, expected, strict=True):
        if other is not None:
            assert_relative(one, other, tolerance, f"{prefix} {name}")


def modules_of(golden):
    """The MLP of the file, base and task vectors."""

    def nested(flat):
        return {
            layer: {kind: jnp.asarray(flat[f"{layer}.{kind}"]) for kind in ("weight", "bias")}
            for layer in ("fc1", "fc2")
        }

    base, stack = nested(group(golden, "base")), nested(group(golden, "expert"))
    return base, merging.task_vectors(base, stack)


def run_module(golden, base, tau, router, groups, strategy="merge", encoding=None):
    """out, coefficients, and the gradients of sum(out * cotangent) to router and input."""
    act = vit.activation(str(golden["act"]))
    h = jnp.asarray(golden["hidden_states"])

    @jax.jit
    def run(router, h):
        def of(router, h):
            c = routers.coefficients(router, h, groups, encoding)
            return merged_modules.merged_mlp(act, base, tau, h, c, strategy)

        out, pullback = jax.vjp(of, router, h)
        return out, pullback(jnp.asarray(golden["cotangent"]))

    return run(router, h)


@pytest.mark.parametrize("file", golden_files("merging", "wemoe_module"))
def test_wemoe_module(file):
    golden = read(file)
    base, tau = modules_of(golden)
    for case in sorted({k.split("/")[0] for k in golden if k.startswith("depth")}):
        depth, routing = case.removeprefix("depth").split("_")
        router = router_of(golden, f"router{depth}")
        groups = 1 if routing == "batch" else None
        for strategy in ("merge", "expertwise"):
            out, (router_gradient, hidden_gradient) = run_module(
                golden, base, tau, router, groups, strategy
            )
            assert_relative(out, golden[f"{case}/out"], name=case)
            assert_relative(hidden_gradient, golden[f"{case}/grad_hidden"], GRADIENT, case)
            assert_router(router_gradient, golden, f"{case}/grad_router")
        if depth != "0":
            c = routers.apply(router, jnp.asarray(golden["hidden_states"]))
            assert_relative(c, golden[f"{case}/coeff_per_sample"], name=case)


@pytest.mark.parametrize("file", golden_files("merging", "ewemoe_module"))
def test_ewemoe_module(file):
    golden = read(file)
    base, tau = modules_of(golden)
    router = router_of(golden, "router2")
    ratios = sorted({k.split("/")[0] for k in golden if re.match(r"prune\d", k)})
    assert ratios
    for name in ratios:
        pruned = merging.magnitude_prune(tau, number(name.removeprefix("prune")))
        for key, expected in group(golden, f"{name}/task_vectors").items():
            layer, kind = key.split(".")
            np.testing.assert_allclose(pruned[layer][kind], expected, rtol=0, atol=VALUE)
            np.testing.assert_array_equal(pruned[layer][kind] != 0, expected != 0)
        out, (gradient, _) = run_module(golden, base, pruned, router, None)
        assert_relative(out, golden[f"{name}/out_sample"])
        if any(v.any() for v in group(golden, f"{name}/grad_router").values()):
            assert_router(gradient, golden, f"{name}/grad_router")
        else:
            assert all(not leaf.any() for leaf in gradient)
        out, _ = run_module(golden, base, pruned, router, 1)
        assert_relative(out, golden[f"{name}/out_batch"])
    check_layer_encodings(golden, base, merging.magnitude_prune(tau, 0.9))
    (name,) = {k.split("/")[0] for k in golden if k.startswith("post_sparse_gate")}
    ratio = number(name.removeprefix("post_sparse_gate"))
    config = WEMoEConfig(shared_router=True, prune_router=ratio)
    thinned = wemoe.prune_routers({"mlp": router}, config)["mlp"]
    assert_router(thinned, golden, name, VALUE)


def check_layer_encodings(golden, base, tau):
    router = router_of(golden, "pe_router")
    layers = {int(m[1]) for k in golden if (m := re.match(r"pe/layer(\d+)/", k))}
    encodings = routers.layer_encodings(max(layers) + 1, len(golden["pe/layer0/encoding"]))
    for layer in layers:
        assert_relative(encodings[layer], golden[f"pe/layer{layer}/encoding"])
        out, _ = run_module(golden, base, tau, router, None, encoding=encodings[layer])
        assert_relative(out, golden[f"pe/layer{layer}/out_sample"])


class Tower:
    """The tiny CLIP, its experts, and what is merged from them."""

    def __init__(self, file):
        self.golden = read(file)
        loaded = clip.load(FOLDER / "merging" / "clip_tiny")
        self.vision, self.base = loaded.config.vision, loaded.params["vision_model"]
        self.projection = loaded.params["visual_projection"]["weight"]
        self.scale = loaded.params["logit_scale"]
        self.stack = self._experts(group(self.golden, "expert"))
        self.pixels = jnp.asarray(self.golden["pixel_values"]).transpose(0, 1, 3, 4, 2)
        self.heads = adaptation.stack_heads(
            [self.golden[name] for name in sorted_heads(self.golden, "zs_head")]
        )

    def _experts(self, flat):
        def leaf(path, like):
            name = "vision_model." + jax.tree_util.keystr(path, simple=True, separator=".")
            before, between, after = name.partition(".layers.")
            if not between:
                return jnp.asarray(flat[name])
            layers = range(len(like))
            return jnp.stack([flat[f"{before}.layers.{i}.{after}"] for i in layers], axis=1)

        return jax.tree_util.tree_map_with_path(leaf, self.base)

    def batch(self, config):
        return wemoe.Batch(
            wemoe.upcycle(self.base, self.stack, config),
            adaptation.unlabeled(list(self.pixels)),
            self.heads,
            self.projection,
            self.scale,
        )

    def routers(self):
        layers = range(self.vision.num_hidden_layers)
        each = [router_of(self.golden, f"router/{layer}") for layer in layers]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def gradient(self, trained, batch, config):
        """Of the summed loss, in float64 like the reference's.

        In float32 it depends on the order of sums to a millionth or so times the logit scale: by
        0.3 to 1.0 of what is allowed.
        """

        def wide(leaf):
            leaf = np.asarray(leaf)
            return jnp.asarray(leaf, jnp.float64 if leaf.dtype == np.float32 else leaf.dtype)

        with jax.enable_x64(True):
            trained, batch, pixels = jax.tree.map(wide, (trained, batch, self.pixels))
            loss = partial(wemoe.loss, batch=batch, pixels=pixels, vision=self.vision)
            return jax.jit(jax.grad(lambda r: loss(r, config=config)[0]))(trained)

    def check_logits(self, logits, case):
        for task, rows in enumerate(logits):
            expected = self.golden[f"{case}/logits/{task}"]
            assert_relative(rows[:, : expected.shape[1]], expected)
            assert np.isneginf(rows[:, expected.shape[1] :]).all()


@pytest.fixture(scope="module", params=golden_files("merging", "wemoe_clip_tta"))
def tower(request):
    return Tower(request.param)


@pytest.mark.parametrize("routing", ["sample", "batch"])
def test_wemoe_adaptation(tower, routing):
    golden, case = tower.golden, f"wemoe_{routing}"
    config = WEMoEConfig(
        routing=routing,
        entropy_epsilon=1e-8,
        schedule="constant",
        batch_size=tower.pixels.shape[1],
    )
    batch, trained = tower.batch(config), {"mlp": tower.routers()}
    value_and_gradient = jax.jit(
        jax.value_and_grad(
            lambda r: wemoe.loss(r, batch, tower.pixels, tower.vision, config), has_aux=True
        )
    )
    (_, (losses, logits)), _ = value_and_gradient(trained)
    tower.check_logits(logits, case)
    assert_relative(losses, golden[f"{case}/losses"])
    gradient = tower.gradient(trained, batch, config)
    for layer in range(tower.vision.num_hidden_layers):
        of_layer = jax.tree.map(lambda leaf, layer=layer: leaf[layer], gradient["mlp"])
        assert_router(of_layer, golden, f"{case}/grad/{layer}")
    method = wemoe.adapter(tower.vision, config)
    state = method.init(jax.random.key(0), batch)._replace(routers=trained)
    step = jax.jit(method.step)
    for _ in range(3):
        state, _ = step(state, batch)
    (_, (losses, _)), _ = value_and_gradient(state.routers)
    assert_relative(losses, golden[f"{case}/losses_after_3_adam"])
    expected = golden[f"{case}/router0_fc2_weight_after_3_adam"]
    np.testing.assert_allclose(state.routers["mlp"].weight[0], expected, rtol=0, atol=1e-6)


def test_ewemoe_adaptation(tower):
    golden = tower.golden
    config = WEMoEConfig(prune=0.9, shared_router=True, entropy_epsilon=1e-8)
    batch, shared = tower.batch(config), {"mlp": router_of(golden, "router/0")}
    losses, logits = jax.jit(lambda r: wemoe.loss(r, batch, tower.pixels, tower.vision, config)[1])(
        shared
    )
    gradient = tower.gradient(shared, batch, config)
    tower.check_logits(logits, "ewemoe90_sample")
    assert_relative(losses, golden["ewemoe90_sample/losses"])
    assert_router(gradient["mlp"], golden, "ewemoe90_sample/grad")


class Corrected:
    """Modules of a surgery file, and the two models' features."""

    def __init__(self, file, tower):
        self.golden, self.tower = read(file), tower
        self.merged = merging.task_arithmetic(tower.base, tower.stack, 0.3)
        self.heads = adaptation.stack_heads(
            [self.golden[name] for name in sorted_heads(self.golden, "head")]
        )
        self.tasks = range(len(self.heads.weights))

    def encode(self, model, pixels, after, corrections):
        out = vit.forward(
            model,
            self.tower.vision,
            pixels,
            projection=self.tower.projection,
            hooks=vit.Hooks(after=after),
            per_layer=corrections,
            taps=("token_means",),
        )
        return out.features, out.encoded.token_means

    def features(self):
        """Of the merged model [T, b, P], and the experts' targets."""
        merged = jax.vmap(lambda x: self.encode(self.merged, x, None, None)[0])(self.tower.pixels)
        expert, means = jax.vmap(lambda p, x: self.encode(p, x, None, None))(
            self.tower.stack, self.tower.pixels
        )
        return merged, surgery.Targets(expert, means.swapaxes(1, 2))

    def modules(self, version, last=""):
        stacked = [
            np.stack([self.golden[f"{version}/{kind}/{task}{last}"] for task in self.tasks])
            for kind in ("down", "up")
        ]
        return surgery.Modules(*map(jnp.asarray, stacked))

    def check(self, values, name, tolerance=VALUE):
        for task in self.tasks:
            assert_relative(values[task], self.golden[name.format(task)], tolerance, name)

    def logits(self, features, name):
        logits = adaptation.classify(features, self.heads, self.tower.scale)
        for task in self.tasks:
            expected = self.golden[name.format(task)]
            assert_relative(logits[task][:, : expected.shape[1]], expected)


@pytest.fixture(scope="module", params=golden_files("merging", "surgery"))
def corrected(request, tower):
    return Corrected(request.param, tower)


def test_surgery(corrected):
    c, modules = corrected, corrected.modules("v1")
    merged, targets = jax.jit(c.features)()
    c.check(merged, "v1/merged_feature/{}")
    c.check(targets.features, "v1/expert_feature/{}")
    features = surgery.correct_features(modules, merged)
    c.check(features, "v1/surgery_feature/{}")
    c.check(merged - features, "v1/bias/{}")
    c.logits(features, "v1/logits/{}")
    config = SurgeryConfig(rank=modules.down.shape[1], batch_size=merged.shape[1])
    (_, terms), gradient = jax.value_and_grad(surgery.loss, has_aux=True)(
        modules, None, merged, targets, config
    )
    c.check(terms[:, 0], "v1/loss/{}")
    c.check(gradient.down, "v1/grad_down/{}", GRADIENT)
    c.check(gradient.up, "v1/grad_up/{}", GRADIENT)
    method = surgery.aligner(config)
    data = surgery.Batch(adaptation.unlabeled(list(merged)), targets)
    state = method.init(jax.random.key(0), data)._replace(modules=modules)
    step = jax.jit(method.step)
    for _ in range(2):
        state, _ = step(state, data)
    for task in c.tasks:
        for kind in ("down", "up"):
            expected = c.golden[f"v1/{kind}_after_2_adam/{task}"]
            actual = getattr(state.modules, kind)[task]
            certain = np.abs(c.golden[f"v1/grad_{kind}/{task}"])
            certain = certain > 1e-7 * certain.max()
            np.testing.assert_allclose(actual[certain], expected[certain], rtol=0, atol=1e-6)


def test_surgery_of_every_block(corrected):
    c = corrected
    layers = range(c.tower.vision.num_hidden_layers)
    last = c.modules("v2", "/final")
    blocks = [c.modules("v2", f"/{layer}") for layer in layers]
    modules = last._replace(
        block_down=jnp.stack([block.down for block in blocks], axis=1),
        block_up=jnp.stack([block.up for block in blocks], axis=1),
    )
    config = SurgeryConfig(deep=True)

    @jax.jit
    def run(modules):
        _, targets = c.features()
        out = surgery.encode_corrected(c.encode, c.merged, modules, c.tower.pixels)
        graded = jax.value_and_grad(surgery.loss, has_aux=True)(
            modules, c.merged, c.tower.pixels, targets, config, c.encode
        )
        return targets, out, graded

    targets, (features, means), ((_, terms), gradient) = run(modules)
    c.check(features, "v2/surgery_layer_feature/{}/final")
    c.check(targets.features, "v2/expert_layer_feature/{}/final")
    c.check(features, "v2/final_feature/{}")
    c.logits(features, "v2/logits/{}")
    c.check(terms, "v2/layer_losses/{}")
    c.check(terms.sum(1), "v2/loss/{}")
    c.check(gradient.down, "v2/grad_down/{}/final", GRADIENT)
    c.check(gradient.up, "v2/grad_up/{}/final", GRADIENT)
    for layer in layers:
        c.check(means[:, layer], f"v2/surgery_layer_feature/{{}}/{layer}")
        c.check(targets.token_means[:, :, layer], f"v2/expert_layer_feature/{{}}/{layer}")
        c.check(gradient.block_down[:, layer], f"v2/grad_down/{{}}/{layer}", GRADIENT)
        c.check(gradient.block_up[:, layer], f"v2/grad_up/{{}}/{layer}", GRADIENT)
