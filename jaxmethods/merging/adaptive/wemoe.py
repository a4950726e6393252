r"""WEMoE and E-WEMoE on a vision transformer: merge most weights, mix the MLPs for every image.

Everything but the chosen modules (the MLPs) is merged once by task arithmetic and frozen. A module
keeps its base weights and task vectors, and a router turns its input into coefficients c:

    out_b = MLP(h_b; theta_0 + sum_t c_bt tau_t),      c_b = mean_l router(h_bl)

Routers are trained at test time by minimizing the entropy of all tasks' predictions.

- WEMoE: Tang et al., ICML 2024, arXiv 2402.00433. One router of two layers for each block.
- E-WEMoE: arXiv 2410.21804. Task vectors pruned by magnitude, one router for all blocks.

    model = wemoe.upcycle(base, stack, config)
    method = wemoe.adapter(vision_config, config)
    data = wemoe.Batch(model, unlabeled, heads, projection, logit_scale)
    state = method.init(key, data)
    state, metrics = jax.jit(method.step)(state, data)
    out = wemoe.forward(model, state.routers, vision_config, config, pixels)

Published evaluations average coefficients over batches of images of one task, which shows the
model what task it is looking at; here every image is routed alone unless `groups` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxmethods.layout import Rule
from jaxmethods.merging.adaptive import routers as routing
from jaxmethods.merging.adaptive.adaptation import Heads, Unlabeled, classify, draw, objective
from jaxmethods.merging.adaptive.merged_modules import (
    apply_merged,
    choose,
    merge_weights,
    merged_mlp,
)
from jaxmethods.merging.adaptive.routers import Groups, Router
from jaxmethods.merging.config import WEMoEConfig
from jaxmethods.merging.static.arithmetic import task_arithmetic
from jaxmethods.merging.static.magnitude import magnitude_prune
from jaxmethods.merging.static.trees import Tree, check_stack, task_vectors
from jaxmethods.method import Method, Metrics, Objective, gradient_step
from jaxmethods.models.clip import vit
from jaxmethods.models.clip.vit import VisionConfig

RULES = (
    Rule(r"(^|/)tau/", (None, "fsdp")),  # [N, T, ...]
    Rule(r"(^|/)unlabeled/", ("data",)),  # [T, ...]
)
"""Experts over `fsdp`, whose sums of merged weights are added up; tasks' images over `data`."""

Routers: TypeAlias = Any
"""Module ("mlp", "self_attn") -> `Router`: a dict."""


class Upcycled(NamedTuple):
    """A vision tower with experts inside; frozen."""

    merged: Tree
    """The tower's tree (`vit.init`) without the chosen modules, merged."""
    base: dict[str, Tree]
    """Module -> theta_0, leaves [N, ...]."""
    tau: dict[str, Tree]
    """Module -> task vectors, leaves [N, T, ...]."""

    @property
    def tasks(self) -> int:
        return jax.tree.leaves(self.tau)[0].shape[1]


class Batch(NamedTuple):
    """What routers are trained on; all of it frozen."""

    model: Upcycled
    unlabeled: Unlabeled
    """Images [T, n, H, W, C]."""
    heads: Heads
    projection: jax.Array
    """[P, D]"""
    logit_scale: jax.Array
    """[] s; logits are exp(s) cosines."""


class State(NamedTuple):
    """A pytree of arrays."""

    key: jax.Array
    routers: Routers
    optimizer: optax.OptState
    step: jax.Array


class Output(NamedTuple):
    """A forward pass."""

    vision: vit.Vision
    coefficients: dict[str, jax.Array]
    """Module -> [N, G, T]: what the routers chose in every block."""


def upcycle(base: Tree, stack: Tree, config: WEMoEConfig) -> Upcycled:
    """Merges what is merged once and sets the modules' task vectors apart.

    Args:
        base: a vision tower (`vit.init`).
        stack: experts [T, ...].

    Raises:
        ValueError: the trees don't match, with the leaf's path.
    """
    check_stack(base, stack)
    merged = task_arithmetic(base, stack, config.coefficient)
    layers = {k: v for k, v in merged["encoder"]["layers"].items() if k not in config.modules}
    merged = {**merged, "encoder": {**merged["encoder"], "layers": layers}}
    origin = {name: base["encoder"]["layers"][name] for name in config.modules}
    tau = task_vectors(origin, {name: stack["encoder"]["layers"][name] for name in config.modules})
    if config.prune is not None:
        tau = magnitude_prune(tau, config.prune, stacked=2)
    # [T, N, ...] -> [N, T, ...]
    return Upcycled(merged, origin, jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), tau))


def init_routers(key: jax.Array, vision: VisionConfig, tasks: int, config: WEMoEConfig) -> Routers:
    """Fresh routers of every module.

    Args:
        key: [] typed random key.
        vision: sizes of the tower.
        tasks: T.
        config: which modules, and the routers' kind.

    Returns:
        Module -> a router in float32, with a leading layer axis unless it is shared.
    """

    def one(key: jax.Array) -> Router:
        return routing.init(
            key,
            vision.hidden_size,
            tasks,
            depth=config.router_depth,
            coefficient=config.coefficient,
            encoding=config.layer_encoding,
        )

    def of_module(key: jax.Array) -> Router:
        if config.shared_router:
            return one(key)
        return jax.vmap(one)(jax.random.split(key, vision.num_hidden_layers))

    keys = jax.random.split(key, len(config.modules))
    return {name: of_module(k) for name, k in zip(config.modules, keys, strict=True)}


def forward(
    model: Upcycled,
    routers: Routers,
    vision: VisionConfig,
    config: WEMoEConfig,
    pixels: jax.Array,
    *,
    groups: Groups = None,
    projection: jax.Array | None = None,
    after: Callable[[jax.Array, Any], jax.Array] | None = None,
    per_layer: Any = None,
    taps: Sequence[str] = (),
    remat: bool = False,
) -> Output:
    """Encodes images, every module with weights merged for the image or its group.

    Args:
        model: what `upcycle` makes.
        routers: of every module.
        vision, config: sizes and strategy; static.
        pixels: [B, H, W, C].
        groups: which images share coefficients (see `routers.Groups`); None: nobody.
        after, per_layer, taps, projection, remat: see `vit.forward`. Without `after` and taps the
            last block computes the class token alone (routers read all tokens there too).

    Returns:
        What `vit.forward` gives, and the coefficients of every module.
    """
    layers = vision.num_hidden_layers
    width = config.layer_encoding
    # Experts are read by the block's number: as a scanned axis every block's would be copied.
    scanned = {
        "layer": jnp.arange(layers),
        "routers": None if config.shared_router else routers,
        "encoding": routing.layer_encodings(layers, width) if width else None,
        "after": per_layer,
    }

    def module(name: str, first_only: bool = False) -> Callable | None:
        if name not in model.base:
            return None

        def run(h: jax.Array, layer: Any, extra: Any) -> tuple[jax.Array, jax.Array]:
            del layer
            router = (routers if config.shared_router else extra["routers"])[name]
            c = routing.coefficients(router, h, groups, extra["encoding"])
            x = h[:, :1] if first_only else h
            return _apply_module(name, vision, config, model, extra["layer"], x, c), c

        return run

    hooks = vit.Hooks(
        attention=module("self_attn"),
        mlp=module("mlp"),
        after=None if after is None else lambda x, extra: after(x, extra["after"]),
        last_mlp=module("mlp", first_only=True),
    )
    out = vit.forward(
        model.merged,
        vision,
        pixels,
        projection=projection,
        hooks=hooks,
        per_layer=scanned,
        taps=taps,
        remat=remat,
        pooled_only=not taps and after is None,
    )
    names = {"attention": "self_attn", "mlp": "mlp"}
    read = out.encoded.read or {}
    return Output(out, {names[name]: value for name, value in read.items()})


def _apply_module(
    name: str,
    vision: VisionConfig,
    config: WEMoEConfig,
    model: Upcycled,
    layer: Any,
    h: Any,
    c: Any,
) -> jax.Array:
    base, tau = model.base[name], model.tau[name]
    if name == "mlp":
        activation = vit.activation(vision.hidden_act)
        return merged_mlp(activation, base, tau, h, c, config.strategy, layer=layer)
    base, tau = jax.tree.map(lambda leaf: leaf[layer], (base, tau))
    sizes = [leaf.size for leaf in jax.tree.leaves(base)]
    chunk = choose(len(c), h.shape[1] * len(h) // len(c), c.shape[1], sum(sizes), 1).chunk
    return apply_merged(
        lambda params, x: vit.self_attention(params, vision, x), base, tau, h, c, chunk
    )


def fold(model: Upcycled, coefficients: dict[str, jax.Array]) -> Tree:
    """The plain tower with fixed coefficients: module -> [T], or [N, T] one row for each block.

    A router of depth 0 is nothing else: `fold(model, {"mlp": routers["mlp"].bias})`.
    """
    layers = dict(model.merged["encoder"]["layers"])
    for name, base in model.base.items():
        count = jax.tree.leaves(base)[0].shape[0]
        c = jnp.broadcast_to(coefficients[name], (count, model.tasks))
        layers[name] = jax.vmap(merge_weights)(base, model.tau[name], c)
    return {**model.merged, "encoder": {**model.merged["encoder"], "layers": layers}}


def prune_routers(routers: Routers, config: WEMoEConfig) -> Routers:
    """Routers with every tensor's magnitudes cut at `config.prune_router`, after adaptation."""
    if config.prune_router is None:
        return routers
    ratio, shared = config.prune_router, config.shared_router
    whole = jax.tree.map(lambda leaf: leaf[None], routers) if shared else routers
    pruned = magnitude_prune(whole, ratio)
    return jax.tree.map(lambda leaf: leaf[0], pruned) if shared else pruned


def adapter(vision: VisionConfig, config: WEMoEConfig) -> Method:
    """Makes the test-time training of routers: Adam on the entropy of all tasks' batches at once.

    Returns:
        `init(key, batch)` and `step(state, batch)` for a `Batch`. Nothing but routers moves.
    """
    rate: Any = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adam(rate)

    def init(key: jax.Array, batch: Batch) -> State:
        key, router_key = jax.random.split(key)
        routers = init_routers(router_key, vision, batch.model.tasks, config)
        return State(key, routers, optimizer.init(routers), jnp.int32(0))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key, draw_key = jax.random.split(state.key)
        pixels = draw(draw_key, batch.unlabeled, config.batch_size)
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.routers, batch, pixels, vision, config
        )
        routers, moments = gradient_step(optimizer, gradient, state.optimizer, state.routers)
        after = State(key, routers, moments, state.step + 1)
        return after, {"loss": value, "gradient_norm": optax.tree.norm(gradient)}

    def watched(state: State, batch: Batch) -> Objective:
        def of_routers(routers: Routers, key: jax.Array) -> jax.Array:
            pixels = draw(key, batch.unlabeled, config.batch_size)
            return loss(routers, batch, pixels, vision, config)[0]

        return Objective(state.routers, of_routers)

    return Method(init, step, watched)


def loss(
    routers: Routers,
    batch: Batch,
    pixels: jax.Array,
    vision: VisionConfig,
    config: WEMoEConfig,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The sum over tasks of `adaptation.objective`, with every image's weights merged for it.

    Args:
        routers: what is trained.
        batch: model, heads and the scale of logits.
        pixels: [T, b, H, W, C]; with batch routing each task's b images share coefficients.
        vision, config: sizes, routing and strategy; static.

    Returns:
        The sum [], and (its terms [T], logits [T, b, C]).
    """
    tasks, size = pixels.shape[:2]
    groups = tasks if config.routing == "batch" else None
    features = forward(
        batch.model,
        routers,
        vision,
        config,
        pixels.reshape(-1, *pixels.shape[2:]),  # [T b, H, W, C]
        groups=groups,
        projection=batch.projection,
        remat=True,
    ).vision.features
    # [T, b, C]
    logits = classify(features.reshape(tasks, size, -1), batch.heads, batch.logit_scale)
    classes = batch.heads.classes[:, None]
    of_tasks = objective(logits, classes, config.entropy_epsilon, config.diversity)
    return jnp.sum(of_tasks), (of_tasks, logits)
