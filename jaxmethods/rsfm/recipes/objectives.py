"""What a run's encoder learns from: its config, its images, and the encoder that is handed on.

Whatever the objective, later stages get an encoder of single optical images: of two sensors the
optical embedding, of dates one that is read in the middle of the year, of Scale-MAE one of whole
images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.config import ConfigError
from jaxmethods.data.bpe import Codec, train_bpe
from jaxmethods.data.earth.normalization import dataset_statistics, decibels
from jaxmethods.data.earth.sensors import SENTINEL1
from jaxmethods.layout import Layout, Rule
from jaxmethods.method import Method, made_once
from jaxmethods.models.clip import TextConfig
from jaxmethods.models.geovit import Context, EncoderConfig
from jaxmethods.rsfm.config import (
    ContrastConfig,
    ImageTextConfig,
    MAEConfig,
    PretrainConfig,
    Run,
    ScaleMAEConfig,
)
from jaxmethods.rsfm.evaluation.measures.retrieval import recall_of_pairs
from jaxmethods.rsfm.pretraining import learners
from jaxmethods.rsfm.pretraining.learners import PretrainedConfig
from jaxmethods.rsfm.pretraining.method import State, held_out_loss, pretrainer
from jaxmethods.rsfm.pretraining.views import Pixels, Texts, whole_views
from jaxmethods.rsfm.recipes.material import Material
from jaxmethods.stages import Evaluation, Results, Train

STAGE = "pretrain"
HELD_OUT = 256
"""Test images at most on which the loss of pretraining is taken."""
OPTICAL, RADAR = "optical", "radar"
YEAR, HOUR = 15.0, 10.0
"""2017 - 2002, and when Sentinel-2 passes: generated scenes have days, but no year and no hour."""
VOCABULARY = 400
LAYOUT = Layout(
    state=(Rule(r"(fc1|q_proj|k_proj|v_proj)/weight$", (None, "fsdp")),),
    batch=(Rule("slots$", ("data",)),),
)
"""The images of a step are split over `data`, the widest weights over `fsdp`."""


class Fed(NamedTuple):
    """What pretraining is fed."""

    data: Pixels
    held_out: Pixels


def pretraining_config(run: Run, material: Material) -> PretrainedConfig:
    """The config of the run's objective, with the size and the bands of its images.

    Raises:
        ConfigError: images without what the objective learns from, or of another size.
    """
    own = run.model
    _check(run, material)
    decoder = {
        "decoder_width": own.decoder_width,
        "decoder_depth": own.decoder_depth,
        "decoder_heads": own.decoder_heads,
        "mask_ratio": own.mask_ratio,
    }
    if own.objective == "scale_mae":
        size = material.images.shape[1]
        return ScaleMAEConfig(
            encoder=_encoder(run, material, positions="gsd", image_size=size // 2),
            fcn_width=own.decoder_width,
            bands=(max(size // 32, 1), size),
            **decoder,
        )
    if own.objective == "infonce":
        sensors = ((OPTICAL, material.images.shape[3]), (RADAR, len(SENTINEL1)))
        encoder = _encoder(run, material, embedding="per_sensor", sensors=sensors)
        return ContrastConfig(encoder=encoder, projection=own.projection)
    if own.objective == "clip":
        text = captions_of(material)[1]
        width = {"hidden_size": own.width, "intermediate_size": 4 * own.width}
        blocks = {"num_hidden_layers": own.decoder_depth, "num_attention_heads": own.heads}
        return ImageTextConfig(
            encoder=_encoder(run, material),
            text=text.model_copy(update=width | blocks),
            projection=own.projection,
        )
    return MAEConfig(
        encoder=_masked_encoder(run, material),
        # SatMAE's shares: a quarter of the decoder's entries, or an eighth for each of three.
        decoder_channel_width=max(own.decoder_width // 16 * 4, 4),
        decoder_date_width=max(own.decoder_width // 32 * 4, 4),
        norm_pix=own.norm_pix,
        **decoder,
    )


def encoder_config(run: Run, material: Material) -> EncoderConfig:
    """The config of the encoder that later stages get."""
    kind = run.model.objective
    if kind == "satmae_temporal":
        return _masked_encoder(run, material).model_copy(
            update={"frames": 1, "positions": "learned"}
        )
    if kind == "satmae_group":
        return _masked_encoder(run, material)
    return _encoder(run, material, **({"positions": "gsd"} if kind == "scale_mae" else {}))


def _fed_pretrainer(config: PretrainedConfig, training: PretrainConfig) -> Method:
    """The method on `Fed`."""
    own = pretrainer(config, training)
    assert own.objective is not None
    watched = own.objective
    return Method(
        lambda key, fed: own.init(key, fed.data),
        lambda state, fed: own.step(state, fed.data),
        lambda state, fed: watched(state, fed.data),
    )


def stage(run: Run, material: Material, config: PretrainedConfig) -> Train:
    """The stage that trains; its result is {"encoder": of single optical images, ...}.

    Args:
        run: the config.
        material: the images.
        config: of `pretraining_config`.

    Returns:
        The stage, with the loss of held-out images; of pairs also how many are found.
    """
    method = made_once(_fed_pretrainer, config, run.pretrain)

    def data(results: Results) -> Fed:
        del results
        # Labels are not read, so the images that choose settings may be learned from as well.
        rows = np.concatenate([material.parts[part] for part in ("train", "validation")])
        learned = pixels(run, material, rows)
        slots = np.arange(run.pretrain.batch, dtype=np.int32)
        held_out = pixels(run, material, material.parts["test"][:HELD_OUT])
        return Fed(learned._replace(slots=slots), held_out)  # type: ignore[arg-type]

    def measure(state: State, fed: Fed, key: jax.Array) -> dict[str, jax.Array]:
        loss = held_out_loss(state.params, config, run.pretrain, fed.held_out, key)
        return {"held_out_loss": loss, **_found_pairs(config, state.params, fed.held_out)}

    return Train(
        STAGE,
        method,
        run.pretrain.steps,
        data,
        result=lambda state, fed: handed_on(config, state.params),
        evaluation=Evaluation(measure),
        layout=LAYOUT,
        main=True,
    )


def handed_on(config: PretrainedConfig, params: Any) -> Any:
    """What was trained, with an encoder of single optical images.

    Args:
        config: of the objective.
        params: that were trained.

    Returns:
        `params` with another "encoder".
    """
    assert not isinstance(config, learners.clip.CLIPConfig)
    middle = jnp.array([YEAR, 6.0, HOUR])
    encoder, _ = learners.plain_encoder(params["encoder"], config.encoder, OPTICAL, middle)
    return params | {"encoder": encoder}


def pixels(run: Run, material: Material, rows: np.ndarray) -> Pixels:
    """Some of the images, with what the objective learns from beside them.

    Args:
        run: the config.
        material: the images.
        rows: which.

    Returns:
        Arrays of the host.
    """
    kind, scenes = run.model.objective, material.scenes
    arrays: Any = (
        material.images[rows],
        material.statistics.mean.astype(np.float32),
        material.statistics.std.astype(np.float32),
        None if material.valid is None else material.valid[rows],
        None if material.gsd is None else np.full(len(rows), material.gsd, np.float32),
    )
    own = Pixels(*arrays)
    if kind == "satmae_temporal":
        assert scenes is not None
        later = scenes.bands(material.bands, later=True)[rows]
        days = np.stack([scenes.season, (scenes.season + 120) % 365 + 1], axis=1)[rows]
        months = np.minimum((days - 1) * 12 // 365, 11)
        when = np.stack([np.full_like(months, YEAR), months, np.full_like(months, HOUR)], axis=2)
        images: Any = np.stack([own.images, later], axis=1)  # [n, 2, H, W, C]
        return own._replace(images=images, timestamps=when.astype(np.float32))  # type: ignore
    if kind == "infonce":
        return own._replace(other=_radar(material, rows))
    if kind == "clip":
        texts = captions_of(material)[0]
        return own._replace(texts=Texts(*(leaf[rows] for leaf in texts)))
    return own


def captions_of(material: Material, texts: Any = None) -> tuple[Texts, TextConfig]:
    """Captions as token ids [N, 1, L], and a text tower's sizes but for width and depth.

    Args:
        material: with scenes.
        texts: other texts, written with the tokens of the training captions; None: the captions.

    Returns:
        Ids with their mask on the host, and the config; the last id ends a text, as CLIP's does.
    """
    scenes = material.scenes
    assert scenes is not None
    codec = Codec(train_bpe([scenes.captions[row] for row in material.parts["train"]], VOCABULARY))
    end = len(codec.tokens)
    longest = 2 + max(len(codec.encode(text)) for text in scenes.captions)
    rows = [[*codec.encode(text)[: longest - 1], end] for text in texts or scenes.captions]
    ids = np.full((len(rows), 1, longest), end, np.int32)
    mask = np.zeros((len(rows), 1, longest), np.int32)
    for place, row in enumerate(rows):
        ids[place, 0, : len(row)], mask[place, 0, : len(row)] = row, 1
    sizes = {"vocab_size": end + 1, "max_position_embeddings": longest, "eos_token_id": end}
    return Texts(ids, mask), TextConfig(hidden_act="gelu", **sizes)  # type: ignore[arg-type]


def _found_pairs(config: PretrainedConfig, params: Any, own: Pixels) -> dict[str, jax.Array]:
    """How many images' partners are the nearest of all."""
    views = whole_views(own)
    context = Context(gsd=own.gsd)
    if isinstance(config, ContrastConfig) and views.other is not None:
        first, second = (
            learners.sensor_features(params, config, name, images, context)
            for name, images in ((OPTICAL, views.images), (RADAR, views.other.images))
        )
        return {"recall_at_1": recall_of_pairs(first, second)}
    return {}


def _radar(material: Material, rows: np.ndarray) -> Pixels:
    scenes = material.scenes
    assert scenes is not None
    power = decibels(scenes.radar)
    known = dataset_statistics(power[material.parts["train"]], tuple(SENTINEL1))
    mean, std = known.mean.astype(np.float32), known.std.astype(np.float32)
    gsd = np.full(len(rows), scenes.gsd, np.float32)
    return Pixels(power[rows], mean, std, gsd=gsd)  # type: ignore[arg-type]


def _encoder(run: Run, material: Material, **changes: Any) -> EncoderConfig:
    own, shape = run.model, material.images.shape
    fields = {"width": own.width, "depth": own.depth, "heads": own.heads, "patch": own.patch}
    fields |= {"positions": own.positions, "image_size": shape[1], "channels": shape[3]}
    return EncoderConfig.model_validate(fields | changes)


def _masked_encoder(run: Run, material: Material) -> EncoderConfig:
    """SatMAE's entries for a group are a third of the width, for each part of a date a sixth."""
    own = run.model
    if own.objective == "satmae_group":
        bands = list(material.bands)
        present = [tuple(name for name in group if name in bands) for group in own.groups]
        groups = [tuple(bands.index(name) for name in group) for group in present if group]
        width = max(own.width // 12 * 4, 4)
        changes = {"embedding": "grouped", "positions": "group", "groups": groups}
        return _encoder(run, material, **changes, channel_width=width)
    if own.objective == "satmae_temporal":
        width = max(own.width // 24 * 4, 4)
        return _encoder(run, material, positions="temporal", frames=2, date_width=width)
    return _encoder(run, material)


def _check(run: Run, material: Material) -> None:
    """Refuses images that lack what the objective learns from."""
    kind, patch = run.model.objective, run.model.patch
    size, bands = material.images.shape[1], material.bands
    where = f"config model.objective: {kind} needs"
    if kind in ("satmae_temporal", "infonce", "clip") and material.scenes is None:
        needed = {"satmae_temporal": "two dates", "infonce": "radar images", "clip": "captions"}
        raise ConfigError(
            f"{where} {needed[kind]} of every place, which the data has not; expected no "
            "data.path, for generated scenes"
        )
    if kind == "scale_mae" and (patch != 16 or size % 32 or len(bands) != 3):
        raise ConfigError(
            f"{where} patch 16, three bands and images whose sides are multiples of 32 pixels; got "
            f"patch {patch}, {len(bands)} bands and {size} pixels"
        )
    if (kind == "scale_mae" or run.model.positions == "gsd") and material.gsd is None:
        raise ConfigError("config data.gsd: positions in meters need the size of a pixel, got none")
    grouped = {name for group in run.model.groups for name in group}
    left = [name for name in bands if name not in grouped]
    if kind == "satmae_group" and left:
        raise ConfigError(f"config model.groups: expected a group for band {left[0]}, got none")
