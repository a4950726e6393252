"""Which tensors a checkpoint has, and which leaves of a parameter tree each of them holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


def _identity(tensor: np.ndarray) -> list[np.ndarray]:
    return [tensor]


def _only(leaves: Sequence[np.ndarray]) -> np.ndarray:
    (leaf,) = leaves
    return leaf


class Tensor(NamedTuple):
    """One tensor of a checkpoint (of every layer, if it has layers) and the leaves it holds."""

    name: str
    """In the checkpoint; `{}` stands for the number of the layer."""
    shape: tuple[int, ...]
    """In the checkpoint."""
    leaves: tuple[str, ...]
    """Paths of leaves of the parameter tree, "layers/mlp/up/kernel"."""
    layers: int = 0
    """How many there are, stacked on the leaves' leading axis; 0: one tensor, no such axis."""
    split: Callable[[np.ndarray], Sequence[np.ndarray]] = _identity
    """The stored tensor -> the leaves (of one layer). Views, so that nothing is read too early."""
    join: Callable[[Sequence[np.ndarray]], np.ndarray] = _only
    """The leaves (of one layer) -> the stored tensor; undoes `split`."""

    def names(self) -> list[str]:
        """The names in the checkpoint, one for each layer."""
        if not self.layers:
            return [self.name]
        return [self.name.format(layer) for layer in range(self.layers)]


def whole(name: str, leaf: str, shape: Sequence[int], layers: int = 0) -> Tensor:
    """A tensor that is a leaf as it stands: an embedding, a bias, the scale of a norm.

    Args:
        name: the stored tensor's, with {} for the layer.
        leaf: path in the parameter tree.
        shape: of the tensor.
        layers: L where there is one in every layer, else 0.

    Returns:
        One row of a family's table.
    """
    return Tensor(name, tuple(shape), (leaf,), layers)


def linear(name: str, leaf: str, inputs: int, outputs: int, layers: int = 0) -> Tensor:
    """The weight (outputs, inputs) of a linear map, whose leaf is a kernel (inputs, outputs).

    Args:
        name: the stored tensor's, with {} for the layer.
        leaf: path in the parameter tree.
        inputs: width of what it takes.
        outputs: width of what it gives.
        layers: L where there is one in every layer, else 0.

    Returns:
        One row of a family's table.
    """
    return Tensor(
        name,
        (outputs, inputs),
        (leaf,),
        layers,
        split=lambda tensor: [tensor.T],
        join=lambda leaves: _only(leaves).T,
    )
