"""Random towers, experts and images for the merging benchmark, the same for JAX and PyTorch.

Names are those of `models/vit.py`, joined by "/"; blocks are stacked along a leading layer axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 1 << 24


@dataclass(frozen=True)
class Size:
    """A vision tower; ViT-B/32 by default."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1


Tree = dict[str, np.ndarray]


def normal(seed: int, shape: tuple[int, ...], std: float) -> np.ndarray:
    """Normal numbers that repeat after 16 million: drawing billions takes longer than measuring."""
    count = int(np.prod(shape))
    own = np.random.default_rng(seed).standard_normal(min(count, BLOCK), np.float32)
    return np.resize(own * np.float32(std), shape)


def layer(tasks: int, width: int, inner: int) -> tuple[Tree, Tree]:
    """Base and task vectors of one MLP."""
    shapes = {
        "fc1/weight": (inner, width),
        "fc1/bias": (inner,),
        "fc2/weight": (width, inner),
        "fc2/bias": (width,),
    }
    base = {k: normal(i, s, 0.02) for i, (k, s) in enumerate(shapes.items())}
    tau = {k: normal(10 + i, (tasks, *s), 0.004) for i, (k, s) in enumerate(shapes.items())}
    return base, tau


def tokens(batch: int, tasks: int, width: int, inner: int, length: int = 50) -> tuple:
    """h [B, L, D] and coefficients [B, T]."""
    del inner
    return normal(20, (batch, length, width), 1.0), 0.3 + normal(21, (batch, tasks), 0.1)


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Every leaf of a tower."""
    n, d, inner = size.num_hidden_layers, size.hidden_size, size.intermediate_size
    of_blocks: dict[str, tuple[int, ...]] = {}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        of_blocks |= {f"self_attn/{name}/weight": (n, d, d), f"self_attn/{name}/bias": (n, d)}
    of_blocks |= {"mlp/fc1/weight": (n, inner, d), "mlp/fc1/bias": (n, inner)}
    of_blocks |= {"mlp/fc2/weight": (n, d, inner), "mlp/fc2/bias": (n, d)}
    for name in ("layer_norm1", "layer_norm2"):
        of_blocks |= {f"{name}/weight": (n, d), f"{name}/bias": (n, d)}
    own = {
        "embeddings/class_embedding": (d,),
        "embeddings/patch_embedding/weight": (d, 3, size.patch_size, size.patch_size),
        "embeddings/position_embedding/weight": (size.tokens, d),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        own |= {f"{name}/weight": (d,), f"{name}/bias": (d,)}
    return own | {f"encoder/layers/{name}": shape for name, shape in of_blocks.items()}


def tower(size: Size, seed: int, without_mlp: bool = False) -> Tree:
    """A random tower; norms' weights are near 1."""
    found = {}
    for index, (name, shape) in enumerate(shapes(size).items()):
        if without_mlp and "/mlp/" in name:
            continue
        found[name] = normal(seed + index, shape, 0.02)
        if "norm" in name and name.endswith("weight"):
            found[name] += 1
    return found


def upcycled(size: Size, tasks: int) -> tuple[Tree, Tree, Tree]:
    """Merged tower without MLPs, the MLPs' base [N, ...] and task vectors [N, T, ...]."""
    prefix = "encoder/layers/mlp/"
    of_mlp = {k[len(prefix) :]: s for k, s in shapes(size).items() if k.startswith(prefix)}
    base = {k: normal(200 + i, s, 0.02) for i, (k, s) in enumerate(of_mlp.items())}
    tau = {
        k: normal(300 + i, (s[0], tasks, *s[1:]), 0.004) for i, (k, s) in enumerate(of_mlp.items())
    }
    return tower(size, 100, without_mlp=True), base, tau


def towers(size: Size, tasks: int) -> tuple[Tree, Tree]:
    """A base and experts [T, ...] near it."""
    base = tower(size, 100)
    stack = {}
    for index, (name, origin) in enumerate(base.items()):
        stack[name] = normal(400 + index, (tasks, *origin.shape), 0.004)
        stack[name] += origin
    return base, stack


def routers(size: Size, tasks: int) -> Tree:
    """Of every block: two layers, as `routers.Router` names them."""
    n, d = size.num_hidden_layers, size.hidden_size
    return {
        "hidden_weight": normal(30, (n, d, d), 0.01),
        "hidden_bias": np.zeros((n, d), np.float32),
        "weight": normal(31, (n, tasks, d), 0.01),
        "bias": np.full((n, tasks), 0.3, np.float32),
    }


def projection(size: Size) -> np.ndarray:
    return normal(32, (size.projection_dim, size.hidden_size), 0.03)


def head(size: Size, classes: int = 100) -> np.ndarray:
    """Rows of unit length."""
    rows = normal(33, (classes, size.projection_dim), 1.0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pixels(size: Size, batch: int) -> np.ndarray:
    """[B, H, W, 3]"""
    return normal(34, (batch, size.image_size, size.image_size, 3), 1.0)


def corrections(size: Size, rank: int) -> tuple[np.ndarray, ...]:
    """A, U of the features and of every block; U is not zero, so that A has a gradient too."""
    n, d, p = size.num_hidden_layers, size.hidden_size, size.projection_dim
    shapes = [(rank, p), (p, rank), (n, rank, d), (n, d, rank)]
    return tuple(normal(40 + i, shape, 0.02) for i, shape in enumerate(shapes))


def cached(size: Size, tasks: int, count: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Merged and expert features [T, n, P]."""
    shape = (tasks, count, size.projection_dim)
    return normal(50, shape, 1.0), normal(51, shape, 1.0)
