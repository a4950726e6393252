"""All tasks' weights as one tree: which task owns what, how its own are taken out and put back.

Kernels are shared out by owners (`activation`); what is private has a leading axis of tasks; the
rest is one for all. One tree serves all tasks: to plan for task i is to take its weights out of it.

Hu et al., VQ-CD, arXiv 2410.15698, sections 3.2 and A.7, which leave open what happens to biases,
norms and the inverse model; private is what forgets nothing.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.layout import path_name
from jaxmethods.models import temporal_unet
from jaxmethods.numerics.keys import named
from jaxmethods.vqcd.activation import apply_mask, draw_owners
from jaxmethods.vqcd.config import PlannerConfig
from jaxmethods.vqcd.inverse_dynamics import init_inverse
from jaxmethods.vqcd.spaces.perceptron import init_perceptron
from jaxmethods.vqcd.types import Bank, Params

Kind = Literal["owned", "private", "common", "base"]
CONVOLUTIONS = ("conv", "skip", "downsample", "upsample", "out")
"""Last names of the U-Net's convolutions."""


class TaskWeights(NamedTuple):
    """One task's own planner."""

    network: Params
    inverse: Params
    """Empty where actions are diffused; what clones the behavior where nothing is."""


def kind(config: PlannerConfig, name: str) -> Kind:
    """Whose a leaf is, by its name.

    `owned`: every entry is some task's; `private`: a copy a task; `common`: every task trains it;
    `base`: only the first task does.
    """
    top, *_, layer, part = name.split("/")
    kernel = part == "weight" and layer != "gn"
    if top == "adapters":
        return "private"
    if top == "inverse":
        if config.inverse == "masked":
            return "owned" if kernel else "private"
        return "private" if config.inverse == "per_task" else "common"
    if kernel and (config.scope == "kernels" or (config.scope == "conv" and layer in CONVOLUTIONS)):
        return "owned"
    rest: dict[str, Kind] = {
        "private": "private",
        "shared": "common",
        "freeze_after_first": "base",
    }
    return rest[config.rest]


def initial_bank(key: jax.Array, config: PlannerConfig) -> Bank:
    """Draws weights and owners; every task starts from the same weights.

    Args:
        key: [] typed key; all randomness of all tasks follows from it.
        config: networks and who owns what; static.

    Returns:
        A `Bank` of which no task is trained.
    """
    network_key, inverse_key, owner_key, adapter_key, key = jax.random.split(key, 5)
    channels, actions = config.state_channels, config.action_channels
    hidden = config.inverse_hidden
    params: dict[str, Params] = {"network": {}, "inverse": {}}
    if config.behavior != "cloned":
        params["network"] = temporal_unet.init(network_key, config.network)
    if config.behavior == "inverse":
        params["inverse"] = init_inverse(inverse_key, channels, actions, hidden)
    elif config.behavior == "cloned":
        params["inverse"] = init_perceptron(inverse_key, (channels, hidden, hidden, actions))
    params["adapters"] = _adapters(adapter_key, config, params["network"])

    def owned(name: str) -> bool:
        return kind(config, name) == "owned"

    owner = draw_owners(owner_key, params, config.tasks, owned, config.shares)
    if config.rescale_init:
        params = _rescaled(config, params, owner)

    def spread(path: Any, leaf: jax.Array) -> jax.Array:
        if kind(config, path_name(path)) != "private":
            return leaf
        return jnp.broadcast_to(leaf, (config.tasks, *leaf.shape))

    params = jax.tree_util.tree_map_with_path(spread, params)
    # A copy: both are donated to the step.
    ema = jax.tree.map(lambda leaf: leaf + 0, params)
    return Bank(params, ema, owner, jnp.int32(0), key, None)


def _rescaled(config: PlannerConfig, params: Params, owner: Params) -> Params:
    """Weights times 1/sqrt of their owner's share; free ones as they are."""
    shares = jnp.asarray(config.shares or [1.0 / config.tasks] * config.tasks)
    factors = jnp.append(shares**-0.5, 1.0)  # owner -1 finds the last

    def scale(own: jax.Array | None, leaf: jax.Array) -> jax.Array:
        return leaf if own is None else leaf * factors[own]

    return jax.tree.map(scale, owner, params, is_leaf=lambda x: x is None)


def take(config: PlannerConfig, tree: Params, task: jax.Array) -> Params:
    """What task `task` [] trains: its slice of private leaves, the others whole."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        return leaf[task] if kind(config, path_name(path)) == "private" else leaf

    return jax.tree_util.tree_map_with_path(one, tree)


def put(config: PlannerConfig, tree: Params, task: jax.Array, current: Params) -> Params:
    """Puts one task's weights back.

    Args:
        config: static.
        tree: `params` or `ema` of a bank.
        task: [] int32.
        current: like what `take` gives of it.

    Returns:
        The tree with these in their places.
    """

    def one(path: Any, leaf: jax.Array, own: jax.Array) -> jax.Array:
        if kind(config, path_name(path)) == "private":
            return jax.lax.dynamic_update_index_in_dim(leaf, own, task, 0)
        return own

    return jax.tree_util.tree_map_with_path(one, tree, current)


def effective(
    config: PlannerConfig, current: Params, owner: Params, task: jax.Array
) -> TaskWeights:
    """The networks that a task runs: masked, with its adapters added; differentiable.

    Args:
        config: static.
        current: what `take` gives.
        owner: owners of the bank.
        task: [] int32.

    Returns:
        Network and inverse model.
    """
    masked = apply_mask(current, owner, task, config.sees == "earlier")
    network = masked["network"]
    for name, adapter in masked["adapters"].items():
        network = _adapted(network, name.split("."), adapter)
    return TaskWeights(network, masked["inverse"])


def task_weights(config: PlannerConfig, bank: Bank, task: jax.Array | int) -> TaskWeights:
    """Takes one task's planner out of the bank.

    Args:
        config: static.
        bank: of all tasks.
        task: [] int32; may be traced. One that was not trained gives its initial weights.

    Returns:
        Averaged weights, those of others 0, adapters added; of kernels the live taps, which every
        plan would have to copy first.
    """
    task = jnp.asarray(task, jnp.int32)
    weights = effective(config, take(config, bank.ema, task), bank.owner, task)
    return weights._replace(network=temporal_unet.compacted(weights.network, config.network))


def join_banks(config: PlannerConfig, banks: Bank) -> Bank:
    """One bank of tasks that were trained side by side.

    Args:
        config: one where nothing is common, so that tasks don't depend on each other; static.
        banks: a leading axis of tasks, in order, each trained from the same initial bank.

    Returns:
        What training them one after another gives.

    Raises:
        ValueError: the config has weights that several tasks train.
    """

    def own(path: Any, leaf: jax.Array, owner: jax.Array | None) -> jax.Array:
        owned = kind(config, path_name(path))
        if owned in ("common", "base"):
            raise ValueError(
                f"config: expected no weights that several tasks train, got {path_name(path)}"
            )
        if owned == "private":
            # [I, I, ...] -> [I, ...]
            return jnp.moveaxis(jnp.diagonal(leaf, axis1=0, axis2=1), -1, 0)
        owners = jnp.clip(owner, 0)[None].astype(jnp.int32)
        return jnp.take_along_axis(leaf, owners, axis=0)[0]

    owner = jax.tree.map(lambda leaf: leaf[0], banks.owner)

    def join(tree: Params) -> Params:
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        owners = jax.tree.leaves(owner, is_leaf=lambda x: x is None)
        joined = [own(path, leaf, o) for (path, leaf), o in zip(leaves, owners, strict=True)]
        return jax.tree.unflatten(structure, joined)

    done = jnp.int32(config.tasks)
    return Bank(join(banks.params), join(banks.ema), owner, done, banks.key[0], None)


def adapted_layers(config: PlannerConfig) -> tuple[str, ...]:
    """The layers that adapters add to: first, middle and last."""
    if config.network.kind == "mlp":
        last = config.network.layers
        return ("mlp.dense0", f"mlp.dense{last // 2}", f"mlp.dense{last}")
    return ("down0.res0.block0.conv", "mid.res0.block0.conv", "mid.res1.block0.conv", "final.out")


def _adapters(key: jax.Array, config: PlannerConfig, network: Params) -> Params:
    """Low-rank additions, 0 at the start: `down` is drawn, `up` is 0."""
    adapters = {}
    for name in adapted_layers(config) if config.adapter_rank else ():
        weight = network
        for part in name.split("."):
            weight = weight[part]
        outputs = weight["weight"].shape[-1]
        inputs, rank = weight["weight"].size // outputs, config.adapter_rank
        down = jax.random.normal(named(key, name), (inputs, rank)) * inputs**-0.5
        adapters[name] = {"down": down, "up": jnp.zeros((rank, outputs))}
    return adapters


def _adapted(network: Params, names: list[str], adapter: Params) -> Params:
    """The network with `down @ up` added to the weight of one layer."""
    first, *others = names
    if others:
        return network | {first: _adapted(network[first], others, adapter)}
    layer = network[first]
    addition = (adapter["down"] @ adapter["up"]).reshape(layer["weight"].shape)  # [taps, in, out]
    return network | {first: layer | {"weight": layer["weight"] + addition}}
