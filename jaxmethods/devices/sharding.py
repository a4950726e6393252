"""Where each leaf of a state lives: one program over any number of devices.

A mesh has the axes `data` (environments, seeds, batches), `fsdp` and `tensor` (parameters). A
rule says how a leaf is split by the path of its name; what no rule names, and whatever an axis
doesn't divide evenly, is replicated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmethods.config import ConfigError, MeshConfig
from jaxmethods.devices import processes as distributed
from jaxmethods.layout import Axes, Layout, Rule, path_name, seed_axes
from jaxmethods.method import State

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig) -> Mesh:
    """Lays all devices out; `data = -1` takes what the other axes leave.

    Raises:
        ConfigError: the sizes multiply to more than the devices there are, or to fewer in a run
            of several processes, each of which must have its part.
    """
    devices = np.array(jax.devices())
    rest = config.fsdp * config.tensor
    data = devices.size // rest if config.data == -1 else config.data
    if data * rest > devices.size or data < 1:
        raise ConfigError(
            f"mesh: data x fsdp x tensor = {config.data} x {config.fsdp} x {config.tensor} "
            f"needs more than the {devices.size} devices there are"
        )
    if distributed.several() and data * rest < devices.size:
        raise ConfigError(
            f"mesh: data x fsdp x tensor = {data} x {config.fsdp} x {config.tensor} leaves out "
            f"some of the {devices.size} devices of the processes; set mesh.data to -1"
        )
    return Mesh(devices[: data * rest].reshape(data, config.fsdp, config.tensor), AXES)


def shardings(tree: Any, rules: Sequence[Rule], seeds: int, mesh: Mesh, seed_axes: Any = 0) -> Any:
    """A sharding for every leaf of a state or batch of `seeds`.

    Several seeds are split over `data` if it divides their number: leaves with an axis of seeds
    along it, and the rules' own `data` gives way, also in what seeds share, since every device
    then needs all of that. Otherwise each seed is split by the rules.

    Args:
        tree: a state or batch, of arrays or their shapes.
        rules: the first whose pattern is found in a leaf's path says how it is split.
        seeds: how many the state has.
        mesh: with the axes `data`, `fsdp` and `tensor`.
        seed_axes: which leaves have a leading axis of seeds, as `jax.vmap`'s `in_axes`: a prefix of
            the tree with 0 and None.

    Returns:
        A `NamedSharding` for every leaf, in the tree's structure.
    """
    by_seed = seeds > 1 and seeds % mesh.shape["data"] == 0
    seeded = jax.tree.map(
        lambda axis, part: jax.tree.map(lambda _: axis is not None, part),
        seed_axes,
        tree,
        is_leaf=lambda axis: axis is None,
    )

    def one(path: Any, leaf: jax.Array, has_seeds: bool) -> NamedSharding:
        name = path_name(path)
        spec = next((rule.spec for rule in rules if re.search(rule.pattern, name)), ())
        axes: list[Axes] = [_without(a, "data") if by_seed else a for a in spec]
        if has_seeds:
            axes.insert(0, "data" if by_seed else None)
        # A rule may be longer than the leaf has axes: a scalar counter beside sharded arrays.
        fitting = [_divides(a, size, mesh) for a, size in zip(axes, leaf.shape, strict=False)]
        return NamedSharding(mesh, PartitionSpec(*fitting))

    return jax.tree_util.tree_map_with_path(one, tree, seeded)


def put(tree: Any, shardings: Any) -> Any:
    """Places arrays of the mesh, or host values that are the same in every process.

    `shardings` is one for all leaves, or one for each.
    """

    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        of_the_mesh = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        if of_the_mesh or sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        # Each process has the whole value and cuts out what its own devices hold.
        return jax.make_array_from_callback(np.shape(leaf), sharding, lambda index: leaf[index])

    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda leaf: shardings, tree)
    return jax.tree.map(one, tree, shardings)


class Placer(NamedTuple):
    """Puts batches on a mesh; see `stages.Place`."""

    mesh: Mesh
    seeds: int

    def __call__(self, tree: Any, layout: Layout) -> Any:
        axes = seed_axes(tree, layout.per_seed)
        return put(tree, shardings(tree, layout.batch, self.seeds, self.mesh, axes))


def local_copy(tree: Any) -> Any:
    """The whole of every array of the mesh, on one device of this process; host values as they are.

    Every process must come here.
    """
    leaves, structure = jax.tree.flatten(tree)
    spread = [place for place, leaf in enumerate(leaves) if _is_spread(leaf)]
    if spread:
        arrays = [leaves[place] for place in spread]
        mesh = arrays[0].sharding.mesh
        whole = NamedSharding(mesh, PartitionSpec())
        gathered = jax.jit(lambda arrays: arrays, out_shardings=whole)(arrays)
        for place, leaf in zip(spread, gathered, strict=True):
            leaves[place] = leaf.addressable_data(0)
    return jax.tree.unflatten(structure, leaves)


def _is_spread(leaf: Any) -> bool:
    sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
    return isinstance(sharding, NamedSharding) and sharding.mesh.size > 1


def replicated(state: State) -> NamedSharding | None:
    """The sharding that puts the whole of an array on every device `state` lives on."""
    sharding = jax.tree.leaves(state)[0].sharding
    return NamedSharding(sharding.mesh, PartitionSpec()) if hasattr(sharding, "mesh") else None


def _without(axes: Axes, name: str) -> Axes:
    return tuple(axis for axis in _names(axes) if axis != name)


def _divides(axes: Axes, size: int, mesh: Mesh) -> Axes:
    """The longest beginning of `axes` whose devices divide `size`."""
    names = _names(axes)
    while names and size % math.prod(mesh.shape[axis] for axis in names):
        names = names[:-1]
    return names if len(names) > 1 else next(iter(names), None)


def _names(axes: Axes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else axes
