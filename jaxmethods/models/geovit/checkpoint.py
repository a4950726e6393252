"""Encoders from released checkpoints, whatever their layout, and back to timm's.

    loaded = load("mae_vit_base.safetensors")            # or a mapping of names to arrays
    features = geovit.encode(loaded.params, loaded.config, images).cls

The layout follows from the names of the tensors: timm and MAE, SatMAE (groups or dates), Scale-MAE,
DOFA, Prithvi, DINOv2. Tensors that are missing or that nobody knows are an error that names them;
decoders and heads are reported as set aside. DINOv2's LayerScale is multiplied into the maps whose
output it scales. Positions that the layout computes are computed and compared with those stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.config import validate
from jaxmethods.models import hub
from jaxmethods.models.clip.vit import usual_heads
from jaxmethods.models.geovit import positions
from jaxmethods.models.geovit.config import EncoderConfig, ratio_of
from jaxmethods.models.geovit.encoder import init_blocks
from jaxmethods.models.hub.folders import HubError, some_of
from jaxmethods.models.hub.parameters import as_weights

Layout = Literal["timm", "satmae_group", "satmae_temporal", "scale_mae", "dofa", "prithvi"]
SATMAE_GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
"""B2 B3 B4 B8 | B5 B6 B7 B8A | B11 B12, after B1, B9 and B10 are left out."""
SET_ASIDE = ("decoder", "mask_token", "fpn.", "fcn", "head.", "projector.")
"""How names begin that belong to no encoder."""
PREFIXES = ("module.", "model.", "backbone.", "encoder.")
"""What wrappers put before all names."""


class Loaded(NamedTuple):
    """An encoder in memory."""

    config: EncoderConfig
    params: Any
    layout: Layout
    set_aside: tuple[str, ...]
    """Names of tensors that belong to a decoder or a head."""
    unused: tuple[str, ...]
    missing: tuple[str, ...]


class Source:
    """Tensors by name, and which of them were asked for."""

    def __init__(self, tensors: Mapping[str, Any]):
        self.left = dict(tensors)
        self.missing: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def take(self, name: str, shape: Sequence[int] | None = None) -> np.ndarray:
        """The tensor as float32; what is missing is noted and becomes zeros of `shape`."""
        if name not in self.left:
            self.missing.append(name)
            return np.zeros(tuple(shape or (1,)), np.float32)
        found = as_weights(name, self.left.pop(name))
        if shape is not None and found.shape != tuple(shape):
            raise HubError(f"checkpoint: {name}: expected {tuple(shape)}, got {found.shape}")
        return found

    def dense(self, name: str, *shape: int) -> dict[str, np.ndarray]:
        """{"weight", "bias"}; `shape` is that of the weight, where it is known."""
        return {
            "weight": self.take(f"{name}.weight", shape or None),
            "bias": self.take(f"{name}.bias", shape[:1] or None),
        }


def load(
    source: str | Path | Mapping[str, Any],
    *,
    heads: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    strict: bool = True,
) -> Loaded:
    """Reads an encoder.

    Args:
        source: a safetensors file, or names and arrays.
        heads: attention heads, which no tensor says; None: one for every 64 entries, and 16 in
            ViT-H (MAE's, Prithvi 2's of 600 M), g and G.
        groups: indices of the bands of SatMAE's groups; None: those of its release.
        strict: whether tensors that are missing or unknown are an error.

    Returns:
        Config, parameters (float32) and which tensors were not used.

    Raises:
        HubError: a layout that isn't known, tensors that are missing or unknown, weights that are
            pickled, quantized or NaN.
    """
    tensors = read(source)
    layout = layout_of(tensors)
    given = Source(tensors)
    config, params = _encoder(given, layout, heads, groups)
    aside = sorted(name for name in given.left if name.startswith(SET_ASIDE))
    unused = sorted(set(given.left) - set(aside))
    if strict and (given.missing or unused):
        parts = [("lacks", given.missing), ("has unknown tensors", unused)]
        found = "; ".join(f"{what} {some_of(names)}" for what, names in parts if names)
        raise HubError(
            f"checkpoint of layout {layout}: it {found}; strict=False loads it all the same"
        )
    tree = jax.tree.map(jnp.asarray, params)
    return Loaded(config, tree, layout, tuple(aside), tuple(unused), tuple(given.missing))


def read(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Names and arrays of a safetensors file, without a wrapper's prefix.

    Raises:
        HubError: it is none, or it would have to be unpickled.
    """
    if isinstance(source, Mapping):
        tensors = dict(source)
    else:
        path = Path(source)
        if path.suffix in (".pth", ".pt", ".ckpt", ".bin"):
            raise HubError(
                f"checkpoint {path}: {path.suffix} files may run code when opened and are not "
                "read; convert it with safetensors.torch.save_file"
            )
        folder = hub.open_file(path)
        tensors = {name: folder.view(name) for name in folder.tensors}
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): own for name, own in tensors.items()}
    return tensors


def layout_of(names: Mapping[str, Any]) -> Layout:
    """Which layout tensors have, by their names and the rank of the patch embedding.

    Args:
        names: names and arrays.

    Returns:
        The layout.

    Raises:
        HubError: none that is known; CLIP's have a reader of their own, `models.clip`.
    """
    if "visual.conv1.weight" in names or "vision_model.embeddings.class_embedding" in names:
        raise HubError("checkpoint: this is a CLIP model; read it with models.clip.from_tensors")
    if "patch_embed.weight_generator.weight_tokens" in names:
        return "dofa"
    if "patch_embed.0.proj.weight" in names:
        return "satmae_group"
    if "patch_embed.proj.weight" not in names or "cls_token" not in names:
        raise HubError(
            "checkpoint: expected tensors of timm, MAE, SatMAE, Scale-MAE, DOFA, Prithvi or "
            f"DINOv2, got {some_of(sorted(names))}"
        )
    if np.ndim(names["patch_embed.proj.weight"]) == 5:
        return "prithvi"
    if "mask_token_decoder" in names or any(name.startswith("fpn.") for name in names):
        return "scale_mae"
    if "pos_embed" in names and names["pos_embed"].shape[-1] < names["cls_token"].shape[-1]:
        return "satmae_temporal"
    return "timm"


def blocks(given: Source, prefix: str, width: int) -> Any:
    """timm's blocks, stacked.

    Args:
        given: the tensors.
        prefix: of their names.
        width: D.

    Returns:
        Leaves [N, ...] by the names of `models.clip.vit`; N may be 0.
    """
    numbers = {name.split(".")[1] for name in given.left if name.startswith(f"{prefix}.")}
    depth = max((int(number) + 1 for number in numbers if number.isdigit()), default=0)
    if not depth:
        return init_blocks(jax.random.key(0), 0, width, 1)
    maps = [own for name, own in given.left.items() if _is_inner(name, prefix)]
    inner = np.shape(maps[0])[0] if maps else 4 * width
    layers = [_block(given, f"{prefix}.{layer}", width, inner) for layer in range(depth)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)


def to_tensors(params: Any, config: EncoderConfig) -> dict[str, np.ndarray]:
    """An encoder in timm's layout; `load` gives the same parameters again, bit for bit.

    Args:
        params: of an encoder with a plain or grouped embedding.
        config: its config.

    Returns:
        Names and float32 arrays.

    Raises:
        ValueError: an embedding that timm's layout has no names for, or another number of blocks.
    """
    if config.embedding not in ("conv", "grouped"):
        raise ValueError(f"config: expected embedding conv or grouped, got {config.embedding}")
    depths = sorted({len(leaf) for leaf in jax.tree.leaves(params["blocks"])})
    if depths != [config.depth]:  # of fewer blocks JAX would give the last one again
        raise ValueError(f"params: expected blocks of depth {config.depth}, got {depths}")
    made = {"cls_token": np.asarray(params["cls_token"])[None, None]}
    kernels = params["patch_embed"]
    named = {f".{n}": own for n, own in kernels.items()} if config.groups else {"": kernels}
    for name, kernel in named.items():
        for part, value in kernel.items():
            made[f"patch_embed{name}.proj.{part}"] = np.asarray(value)
    if config.positions == "learned":
        made["pos_embed"] = np.asarray(params["positions"])[None]
    if config.registers:
        made["register_tokens"] = np.asarray(params["registers"])[None]
    norm = "fc_norm" if config.norm_after_pooling else "norm"
    for part, value in params["norm"].items():
        made[f"{norm}.{part}"] = np.asarray(value)
    for layer in range(config.depth):
        made |= _block_tensors(params["blocks"], layer)
    return made


def _encoder(
    given: Source,
    layout: Layout,
    heads: int | None,
    groups: Sequence[Sequence[int]] | None,
) -> tuple[EncoderConfig, Any]:
    first = given.take("cls_token")
    width = first.shape[-1]
    stack = blocks(given, "blocks", width)
    depth, inner = stack["mlp"]["fc1"]["bias"].shape
    fields: dict[str, Any] = {"width": width, "depth": depth, "mlp_ratio": ratio_of(inner, width)}
    fields["heads"] = heads or usual_heads(width)
    params: dict[str, Any] = {"cls_token": first.reshape(-1), "blocks": stack}
    make = {"dofa": _dofa_embedding, "satmae_group": _grouped_embedding}.get(layout, _embedding)
    params["patch_embed"], found = make(given, groups)
    fields |= found
    if "register_tokens" in given:
        params["registers"] = given.take("register_tokens")[0]
        fields["registers"] = len(params["registers"])
    if "pos_embed" in given and layout != "scale_mae":
        table = given.take("pos_embed")[0]
    else:
        given.left.pop("pos_embed", None)
        table = None
    channel_table = given.take("channel_embed")[0] if layout == "satmae_group" else None
    fields |= _position_fields(layout, table, channel_table, fields, width)
    pooled = "fc_norm.weight" in given
    params["norm"] = given.dense("fc_norm" if pooled else "norm")
    fields["norm_after_pooling"] = pooled
    config = validate(EncoderConfig, fields, "checkpoint")
    if config.positions == "learned":
        params["positions"] = table
    return config, params


def _position_fields(
    layout: Layout,
    table: np.ndarray | None,
    channel_table: np.ndarray | None,
    fields: Mapping[str, Any],
    width: int,
) -> dict[str, Any]:
    """Kind of positions, image size and frames; tables that are computed must be those stored."""
    patch = fields["patch"]
    if layout == "scale_mae":
        return {"positions": "gsd", "image_size": 224 // patch * patch}
    if table is None:
        raise HubError("checkpoint: it lacks pos_embed")
    rows = len(table) - 1
    frames = positions.frames_of(table[1:]) if layout == "prithvi" else 1
    if layout != "prithvi" and not positions.is_square(rows):
        raise HubError(f"checkpoint: pos_embed: expected a square grid, got {rows} rows")
    grid = round((rows // frames) ** 0.5)
    found: dict[str, Any] = {"image_size": grid * patch}
    if layout == "prithvi":
        return found | {"positions": "learned", "frames": frames}
    if layout in ("timm", "dofa"):
        return found | {"positions": "learned"}
    own = positions.plain(table.shape[-1], grid)
    if not np.allclose(own[1:], table[1:], atol=1e-5):
        raise HubError(f"checkpoint: pos_embed: expected the fixed sines of layout {layout}")
    if layout == "satmae_temporal":
        dates = (width - table.shape[-1]) // 3
        return found | {"positions": "temporal", "date_width": dates, "frames": 3}
    assert channel_table is not None
    return found | {"positions": "group", "channel_width": channel_table.shape[-1]}


def _embedding(given: Source, groups: object) -> tuple[Any, dict[str, Any]]:
    del groups
    kernel = given.dense("patch_embed.proj")
    weight = kernel["weight"]
    found: dict[str, Any] = {"patch": weight.shape[-1], "channels": weight.shape[1]}
    if weight.ndim == 5:
        if weight.shape[2] != 1:
            raise HubError(
                "checkpoint: patch_embed.proj.weight: expected tubelets of one frame, "
                f"got {weight.shape[2]}"
            )
        kernel["weight"] = weight[:, :, 0]
        found["embedding"] = "tubelet"
    return kernel, found


def _grouped_embedding(
    given: Source, groups: Sequence[Sequence[int]] | None
) -> tuple[Any, dict[str, Any]]:
    number = sum(name.startswith("patch_embed.") for name in given.left) // 2
    kernels = {str(place): given.dense(f"patch_embed.{place}.proj") for place in range(number)}
    sizes = [kernel["weight"].shape[1] for kernel in kernels.values()]
    chosen = SATMAE_GROUPS if groups is None else tuple(tuple(group) for group in groups)
    if sizes != [len(group) for group in chosen]:
        raise HubError(f"groups: expected groups of {sizes} bands, got {chosen}")
    patch = kernels["0"]["weight"].shape[-1]
    fields = {"embedding": "grouped", "groups": chosen, "patch": patch, "channels": sum(sizes)}
    return kernels, fields


def _dofa_embedding(given: Source, groups: object) -> tuple[Any, dict[str, Any]]:
    del groups
    params = generator(given, "patch_embed.")
    patch = (params["fc_weight"]["weight"].shape[0] // len(params["fc_bias"]["bias"])) ** 0.5
    tokens = params["weight_tokens"]
    return params, {
        "embedding": "wavelength",
        "patch": round(patch),
        "padding": 1,
        "wave_width": tokens.shape[1],
        "wave_tokens": len(tokens),
        "wave_hidden": len(params["layer"]["linear1"]["bias"]),
    }


def generator(given: Source, prefix: str = "") -> Any:
    """DOFA's generator of kernels, from tensors whose names begin with `prefix`."""
    own = f"{prefix}weight_generator."
    layer = f"{own}transformer_encoder.layers.0."
    query = given.take(f"{layer}self_attn.in_proj_weight")
    bias = given.take(f"{layer}self_attn.in_proj_bias")
    return {
        "weight_tokens": given.take(f"{own}weight_tokens"),
        "bias_token": given.take(f"{own}bias_token"),
        "layer": {
            "self_attn": _three(query, bias)
            | {"out_proj": given.dense(f"{layer}self_attn.out_proj")},
            **{name: given.dense(layer + name) for name in ("linear1", "linear2")},
            **{name: given.dense(layer + name) for name in ("norm1", "norm2")},
        },
        "fc_weight": given.dense(f"{own}fc_weight"),
        "fc_bias": given.dense(f"{own}fc_bias"),
        "w1": given.dense(f"{prefix}fclayer.w1"),
        "w2": given.dense(f"{prefix}fclayer.w2"),
    }


def _block(given: Source, prefix: str, width: int, inner: int) -> dict[str, Any]:
    qkv = given.dense(f"{prefix}.attn.qkv", 3 * width, width)
    out = given.dense(f"{prefix}.attn.proj", width, width)
    fc1 = given.dense(f"{prefix}.mlp.fc1", inner, width)
    fc2 = given.dense(f"{prefix}.mlp.fc2", width, inner)
    for number, scaled in enumerate((out, fc2), 1):
        if f"{prefix}.ls{number}.gamma" in given:
            gamma = given.take(f"{prefix}.ls{number}.gamma", (width,))
            scaled["weight"] = scaled["weight"] * gamma[:, None]
            scaled["bias"] = scaled["bias"] * gamma
    return {
        "layer_norm1": given.dense(f"{prefix}.norm1", width),
        "self_attn": _three(qkv["weight"], qkv["bias"]) | {"out_proj": out},
        "layer_norm2": given.dense(f"{prefix}.norm2", width),
        "mlp": {"fc1": fc1, "fc2": fc2},
    }


def _is_inner(name: str, prefix: str) -> bool:
    """Whether a tensor is the first map of a block's MLP, which says how wide that is."""
    return name.startswith(f"{prefix}.") and name.endswith(".mlp.fc1.weight")


def _three(weight: np.ndarray, bias: np.ndarray) -> dict[str, Any]:
    """Queries, keys and values of one map [3 D, D]."""
    parts = zip(np.split(weight, 3), np.split(bias, 3), strict=True)
    names = ("q_proj", "k_proj", "v_proj")
    return {
        name: {"weight": own, "bias": shift}
        for name, (own, shift) in zip(names, parts, strict=True)
    }


def _block_tensors(stack: Any, layer: int) -> dict[str, np.ndarray]:
    prefix, made = f"blocks.{layer}", {}
    attention = stack["self_attn"]
    for part in ("weight", "bias"):
        three = [attention[name][part][layer] for name in ("q_proj", "k_proj", "v_proj")]
        made[f"{prefix}.attn.qkv.{part}"] = np.concatenate([np.asarray(own) for own in three])
        named = {"norm1": stack["layer_norm1"], "norm2": stack["layer_norm2"]}
        named |= {"attn.proj": attention["out_proj"]}
        named |= {"mlp.fc1": stack["mlp"]["fc1"], "mlp.fc2": stack["mlp"]["fc2"]}
        for name, own in named.items():
            made[f"{prefix}.{name}.{part}"] = np.asarray(own[part][layer])
    return made
