r"""CLIP: a vision tower and a text tower with one space of features.

    logits_per_image = exp(s) normalize(image features) normalize(text features)^T

Radford et al. 2021, arXiv 2103.00020. Hugging Face folders of the whole model (`clip`) and of the
vision tower alone (`clip_vision_model`, with or without its projection) go in and out: parameters
keep their names,

    {"vision_model", "visual_projection", "text_model", "text_projection", "logit_scale"}

with the blocks of each tower stacked on a leading layer axis.

    folder = clip.load("clip-vit-base-patch32")
    tokenizer = clip.load_tokenizer("clip-vit-base-patch32")
    head = clip.head_from_templates(folder.params, folder.config, tokenizer, names, templates)
    features = clip.image_features(folder.params, folder.config, pixels).features
    logits = clip.classify(features, head, folder.params["logit_scale"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import PositiveInt, ValidationError

from jaxmethods.config import Config
from jaxmethods.errors import import_extra
from jaxmethods.models import hub
from jaxmethods.models.clip import vit
from jaxmethods.models.clip.vit import Activation, VisionConfig
from jaxmethods.models.hub.config import Fields
from jaxmethods.models.lookup import rows

PROJECTION = "visual_projection.weight"
"""Stored beside a vision tower by `CLIPVisionModelWithProjection`."""
LEGACY_EOS = 2
"""An `eos_token_id` that old configs hold by mistake: the pooled token is then the largest id."""
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


class TextConfig(Config):
    """Sizes of a text tower; names and defaults are Hugging Face's (ViT-B/32)."""

    vocab_size: PositiveInt = 49408
    hidden_size: PositiveInt = 512
    intermediate_size: PositiveInt = 2048
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 8
    max_position_embeddings: PositiveInt = 77
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: PositiveInt = 512
    eos_token_id: int = 49407


class CLIPConfig(Config):
    """Both towers, or the vision tower alone."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig | None = TextConfig()
    """None: a folder of the vision tower alone, without scale."""
    projection_dim: PositiveInt = 512
    projected_tower: bool = False
    """Whether a vision tower alone has its projection."""


class Loaded(NamedTuple):
    """A model folder in memory."""

    config: CLIPConfig
    params: Any
    raw: dict[str, Any]
    """`config.json` as it was, to be written back."""


class Text(NamedTuple):
    """A text tower's output."""

    features: jax.Array
    """[B, P]: projected, not normalized."""
    pooled: jax.Array
    """[B, D]: final norm of the end-of-text token."""
    last: jax.Array
    """[B, L, D]: final norm of all tokens."""
    encoded: vit.Encoded


def image_features(
    params: Any, config: CLIPConfig, pixels: jax.Array, **options: Any
) -> vit.Vision:
    """`vit.forward` with the model's visual projection (if it has one).

    Args:
        params: parameters, see `init`.
        config: sizes of the model.
        pixels: [B, H, W, C] float; Hugging Face's (B, C, H, W) is `pixels.transpose(0, 2, 3, 1)`.
        options: see `vit.forward`.

    Returns:
        Features [B, P] and what was tapped.
    """
    projection = params.get("visual_projection", {}).get("weight")
    return vit.forward(
        params["vision_model"], config.vision, pixels, projection=projection, **options
    )


def text_features(
    params: Any,
    config: CLIPConfig,
    ids: jax.Array,
    mask: jax.Array | None = None,
    taps: Sequence[str] = (),
) -> Text:
    """Encodes texts.

    Args:
        params: parameters, see `init`.
        config: sizes of the model.
        ids: [B, L] integer token ids, L at most `max_position_embeddings`. Ids that the vocabulary
            hasn't are an error, or NaN where values aren't known (in `jit`).
        mask: [B, L], 0 at padding; None: no padding. The pooled token never looks behind itself,
            so padding after it doesn't matter to the features.
        taps: what else is returned.

    Returns:
        Features [B, P] and what was tapped.
    """
    text = config.text
    if text is None:
        raise ValueError("config: expected a model with a text tower, this is a vision tower alone")
    if ids.shape[-1] > text.max_position_embeddings:
        raise ValueError(
            f"ids: expected at most {text.max_position_embeddings} tokens, got {ids.shape[-1]}"
        )
    tower = params["text_model"]
    length = ids.shape[-1]
    x = rows(tower["embeddings"]["token_embedding"]["weight"], ids, "ids")
    x = x + tower["embeddings"]["position_embedding"]["weight"][:length]
    sees = jnp.tril(jnp.ones((length, length), bool))[None, None]
    if mask is not None:
        sees = sees & (mask[:, None, None, :] != 0)
    encoded = vit.encode(tower["encoder"]["layers"], text, x, mask=sees, taps=taps)
    last = vit.layer_norm(tower["final_layer_norm"], encoded.last, text.layer_norm_eps)
    # Comparing integers: ids of float type would lose large ones. argmax takes the first maximum.
    marks = ids if text.eos_token_id == LEGACY_EOS else (ids == text.eos_token_id).astype(jnp.int32)
    pooled = last[jnp.arange(len(ids)), jnp.argmax(marks, axis=-1)]
    features = pooled @ params["text_projection"]["weight"].T
    return Text(features, pooled, last, encoded)


def normalize(features: jax.Array) -> jax.Array:
    """x / |x| over the last axis, without an epsilon.

    Args:
        features: x [..., P].

    Returns:
        [..., P] of length 1, in the type of x.
    """
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def similarity(image: jax.Array, text: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """[B_image, B_text]: exp(s) times the cosines of features [B, P].

    Args:
        image: [B_image, P].
        text: [B_text, P].
        logit_scale: s [].

    Returns:
        [B_image, B_text].
    """
    return jnp.exp(logit_scale) * normalize(image) @ normalize(text).T  # [B, texts]


def classify(features: jax.Array, head: jax.Array, logit_scale: Any) -> jax.Array:
    """[B, C]: exp(s) normalize(features) head^T, for a head [C, P] taken as it is.

    Args:
        features: [B, P].
        head: [C, P].
        logit_scale: s, float or [].

    Returns:
        Logits [B, C].
    """
    return jnp.exp(logit_scale) * normalize(features) @ head.T  # [B, classes]


def zero_shot_head(features: jax.Array) -> jax.Array:
    """[C, P]: per class the normalized mean of its prompts' normalized features [C, K, P].

    Args:
        features: [C, K, P] of K prompts for each of C classes.

    Returns:
        [C, P], rows of length 1.
    """
    return normalize(jnp.mean(normalize(features), axis=1))


def head_from_templates(
    params: Any,
    config: CLIPConfig,
    tokenizer: Any,
    class_names: Sequence[str],
    templates: Sequence[str],
) -> jax.Array:
    """[C, P]: the zero-shot head of C classes from K templates such as "a photo of a {}.".

    Args:
        params: parameters, see `init`.
        config: sizes of the model.
        tokenizer: what `load_tokenizer` returns.
        class_names: C names.
        templates: with one `{}` (or `{c}`) where the class name belongs.

    Returns:
        [C, P] float32.

    Raises:
        ValueError: no classes or templates, or a template without a place for the class name.
    """
    if not class_names or not templates:
        raise ValueError("class_names, templates: expected at least one of each")
    wrong = [template for template in templates if "{}" not in template and "{c}" not in template]
    if wrong:
        raise ValueError(f"templates: expected a {{}} for the class name in {wrong[0]!r}")
    prompts = [
        template.replace("{c}", "{}").replace("{}", name)
        for name in class_names
        for template in templates
    ]
    ids, mask = tokenize(tokenizer, prompts, config)
    features = text_features(params, config, ids, mask).features
    # [classes, templates, P]
    return zero_shot_head(features.reshape(len(class_names), len(templates), -1))


def tokenize(
    tokenizer: Any, texts: Sequence[str], config: CLIPConfig
) -> tuple[jax.Array, jax.Array]:
    """Ids and mask [B, L] int32, padded to the longest text; long ones are cut at the end.

    Padding repeats the last token of a text (its end), which the pooled token comes before.

    Args:
        tokenizer: what `load_tokenizer` returns.
        texts: B texts.
        config: sizes of the model.

    Returns:
        Ids and mask, [B, L] int32 each.
    """
    assert config.text is not None
    longest = config.text.max_position_embeddings
    rows = [tokenizer.encode(text).ids for text in texts]
    rows = [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in rows]
    length = max(map(len, rows))
    ids = np.array([row + [row[-1]] * (length - len(row)) for row in rows], np.int32)
    mask = np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int32)
    return jnp.asarray(ids), jnp.asarray(mask)


def load_tokenizer(path: str | Path) -> Any:
    """The `tokenizers.Tokenizer` of a model folder: `tokenizer.json`, or `vocab.json` with
    `merges.txt`.

    Args:
        path: a model folder.

    Returns:
        The tokenizer.

    Raises:
        MissingExtraError: the `tokenizers` package is not installed.
        HubError: there is no tokenizer, or a damaged one.
    """
    tokenizers = import_extra("tokenizers", "lm")
    path = Path(path)
    try:
        if (path / "tokenizer.json").is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer
        if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            return _byte_pair_tokenizer(tokenizers, path)
    except Exception as error:  # the package raises bare Exceptions
        raise hub.HubError(f"model {path}: its tokenizer cannot be read ({error})") from error
    raise hub.HubError(f"model {path}: holds no tokenizer.json, and no vocab.json with merges.txt")


def _byte_pair_tokenizer(tokenizers: Any, path: Path) -> Any:
    """CLIP's lower-case byte-pair encoding with an end-of-word mark."""
    model = tokenizers.models.BPE.from_file(
        str(path / "vocab.json"),
        str(path / "merges.txt"),
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        fuse_unk=False,
        unk_token="<|endoftext|>",
    )
    tokenizer = tokenizers.Tokenizer(model)
    normalizers, splits = tokenizers.normalizers, tokenizers.pre_tokenizers
    space = tokenizers.Regex(r"\s+")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(space, " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = splits.Sequence(
        [
            splits.Split(tokenizers.Regex(words), behavior="removed", invert=True),
            splits.ByteLevel(add_prefix_space=False),
        ]
    )
    first, last = "<|startoftext|>", "<|endoftext|>"
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in (first, last)],
    )
    return tokenizer


def load(path: str | Path, dtype: Any = jnp.float32, shardings: Any = None) -> Loaded:
    """Reads a Hugging Face CLIP folder, whole (`clip`) or vision only (`clip_vision_model`).

    Args:
        path: the folder.
        dtype: of the parameters; None keeps what is stored.
        shardings: one for all leaves, or a tree with one for each.

    Returns:
        Config, parameters and the content of `config.json`.

    Raises:
        HubError: see `hub.open_folder` and `hub.read_params`; or the config is not CLIP's.
    """
    folder = hub.open_folder(path)
    config = config_of(folder.config, str(path))
    if config.text is None:
        folder = _with_prefix(folder)
        config = config.model_copy(update={"projected_tower": _has_projection(folder)})
    ignore = _buffers if config.text is not None else _not_tower(config)
    params = hub.read_params(
        folder, table(config), shapes(config), dtype=dtype, shardings=shardings, ignore=ignore
    )
    return Loaded(config, params, folder.config)


def save(
    path: str | Path, raw: Mapping[str, Any], params: Any, tokenizer_from: str | Path | None = None
) -> None:
    """Writes a folder that `transformers` opens.

    Args:
        path: must not exist, or be an empty folder.
        raw: the content of `config.json`, e.g. `Loaded.raw`.
        params: in the dtype they shall be stored in.
        tokenizer_from: a folder whose tokenizer and preprocessor files are copied along.

    Raises:
        HubError: the folder exists, or parameters don't fit the config. Nothing is left then.
    """
    config, written = config_of(raw, str(path)), dict(raw)
    written.pop("transformers_weights", None)  # names a file of the folder that was read
    if config.text is None:
        projected = "visual_projection" in params
        config = config.model_copy(update={"projected_tower": projected})
        if raw.get("architectures") is not None:
            written["architectures"] = [TOWERS[projected]]
    stored = hub.common_type(params)
    for name in ("dtype", "torch_dtype"):
        if written.get(name) is not None and not _holds(written[name], stored):
            written[name] = str(stored)  # transformers would round what it reads
    hub.write_folder(path, written, table(config), params, extra_files=tokenizer_from)


TOWERS = ("CLIPVisionModel", "CLIPVisionModelWithProjection")
"""Classes of a vision tower alone, without and with its projection."""


def config_of(raw: Mapping[str, Any], source: str = "config") -> CLIPConfig:
    """The sizes in a `config.json`; absent fields take Hugging Face's defaults.

    Args:
        raw: the content of `config.json`.
        source: what errors call it.

    Returns:
        The config.

    Raises:
        HubError: it is of another model type, or a field is wrong.
    """
    kind = raw.get("model_type")
    for name in ("quantization_config", "per_layer_config"):
        Fields(raw, source).refuse(name)
    try:
        if kind == "clip_vision_model":
            vision = VisionConfig(**_known(VisionConfig, raw))
            return CLIPConfig(
                vision=vision,
                text=None,
                projection_dim=vision.projection_dim,
                projected_tower=_is_projected(raw),
            )
        if kind == "clip":
            projection = raw.get("projection_dim", 512)
            vision = _tower_fields(VisionConfig, raw, "vision_config", source)
            text = _tower_fields(TextConfig, raw, "text_config", source)
            return CLIPConfig(
                vision=VisionConfig(**{**vision, "projection_dim": projection}),
                text=TextConfig(**{**text, "projection_dim": projection}),
                projection_dim=projection,
            )
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise hub.HubError(f"model {source}: config.json: {field}: {problem['msg']}") from error
    raise hub.HubError(
        f"model {source}: config.json: expected model_type clip or clip_vision_model, got {kind!r}"
    )


def shapes(config: CLIPConfig) -> Any:
    """The parameter tree with a `jax.ShapeDtypeStruct` at every leaf."""
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


def init(key: jax.Array, config: CLIPConfig) -> Any:
    """Random parameters; the whole tree of a `clip`, or a vision tower alone.

    Args:
        key: typed random key [].
        config: sizes of the model.

    Returns:
        A tree of float32 parameters.
    """
    keys = jax.random.split(key, 6)
    params: dict[str, Any] = {"vision_model": vit.init(keys[0], config.vision)}
    text, projection = config.text, config.projection_dim

    def normal(key: jax.Array, *shape: int, std: float = 0.02) -> dict[str, jax.Array]:
        return {"weight": std * jax.random.normal(key, shape)}

    if text is not None or config.projected_tower:
        params["visual_projection"] = normal(
            keys[1], projection, config.vision.hidden_size, std=config.vision.hidden_size**-0.5
        )
    if text is None:
        return params
    width = text.hidden_size
    params["text_projection"] = normal(keys[2], projection, width, std=width**-0.5)
    params["text_model"] = {
        "embeddings": {
            "token_embedding": normal(keys[3], text.vocab_size, width),
            "position_embedding": normal(keys[5], text.max_position_embeddings, width),
        },
        "encoder": {
            "layers": vit.init_layers(
                keys[4], text.num_hidden_layers, width, text.intermediate_size
            )
        },
        "final_layer_norm": vit.init_norm(width),
    }
    params["logit_scale"] = jnp.asarray(2.6592)
    return params


def table(config: CLIPConfig) -> list[hub.Tensor]:
    """Which stored tensor is which leaf: the path with dots, the layer's number after "layers"."""
    entries = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(config)):
        name = hub.path_of(path)
        before, between, after = name.partition("/layers/")
        if between:
            stored = f"{before}.layers.{{}}.{after}".replace("/", ".")
            entries.append(hub.whole(stored, name, leaf.shape[1:], layers=leaf.shape[0]))
        else:
            entries.append(hub.whole(name.replace("/", "."), name, leaf.shape))
    return entries


def _known(model: type[Config], raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: raw[name] for name in model.model_fields if raw.get(name) is not None}


def _tower_fields(
    model: type[Config], raw: Mapping[str, Any], name: str, source: str
) -> dict[str, Any]:
    """A tower's fields. Those of `NAME_dict`, and the defaults of what it leaves out, are stronger
    than those of `NAME`: so old configs with both are read by `transformers`."""
    own, older = raw.get(name), raw.get(f"{name}_dict")
    for value in (own, older):
        if not isinstance(value, dict | None):
            raise hub.HubError(f"model {source}: config.json: {name}: expected an object")
    if older is None:
        return _known(model, own or {})
    return {**_known(model, own or {}), **model().model_dump(), **_known(model, older)}


def _buffers(name: str) -> bool:
    return name.endswith("position_ids")


def _not_tower(config: CLIPConfig) -> Any:
    """Says what else a vision tower's file may hold: it may be that of the whole model."""
    others = ("text_model.", "text_projection.", "logit_scale")
    if not config.projected_tower:
        others += (PROJECTION,)
    return lambda name: _buffers(name) or name.startswith(others)


def _with_prefix(folder: hub.Folder) -> hub.Folder:
    """A `CLIPVisionModel` as transformers 5 writes it lacks the prefix `vision_model.`."""
    if any(name.startswith("vision_model.") for name in folder.tensors):
        return folder
    return folder._replace(
        tensors={
            name if name == PROJECTION else f"vision_model.{name}": stored
            for name, stored in folder.tensors.items()
        }
    )


def _is_projected(raw: Mapping[str, Any]) -> bool:
    classes = raw.get("architectures")
    return isinstance(classes, list) and TOWERS[True] in classes


def _has_projection(folder: hub.Folder) -> bool:
    """Whether the tower has one: by its class, or else if one is stored beside the tower alone."""
    if folder.config.get("architectures"):
        return _is_projected(folder.config)
    whole = any(name.startswith("text_model.") for name in folder.tensors)
    return PROJECTION in folder.tensors and not whole


def _holds(dtype: Any, stored: Any) -> bool:
    """Whether a type (as config.json names it) holds all values of another one."""
    try:
        return jnp.promote_types(str(dtype).removeprefix("torch."), stored) == jnp.dtype(dtype)
    except TypeError:
        return False
