"""Configs of pretraining, of evaluation and of their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from jaxmethods.config import Config, OnResume, OpenFraction, TrainingRunConfig
from jaxmethods.models.clip.network import TextConfig
from jaxmethods.models.geovit.config import EncoderConfig, Pooling


class MAEConfig(Config):
    """A masked autoencoder; with several groups or dates, SatMAE."""

    encoder: EncoderConfig = EncoderConfig()
    decoder_width: PositiveInt = 512
    decoder_depth: NonNegativeInt = 8
    decoder_heads: PositiveInt = 16
    decoder_channel_width: PositiveInt = 128
    """Entries of the decoder's positions that encode a group of bands."""
    decoder_date_width: PositiveInt = 64
    mask_ratio: OpenFraction = 0.75
    masking: Literal["independent", "shared"] = "independent"
    """Tokens of groups or dates are hidden each for itself, or at the same places in all."""
    norm_pix: Literal["joint", "per_band", "none"] = "joint"
    """Targets are standardized over a patch with all its bands, or each band for itself."""
    pairing: Literal["by_group", "published"] = "by_group"
    """Which band a painted one is compared with, see `satmae`."""

    @model_validator(mode="after")
    def _parts_fit(self) -> MAEConfig:
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_heads: expected a divisor of decoder_width = {self.decoder_width}, "
                f"got {self.decoder_heads}"
            )
        tokens = self.encoder.grid**2 if self.masking == "shared" else self.encoder.tokens
        if int(tokens * (1 - self.mask_ratio)) < 1:
            raise ValueError(
                f"mask_ratio: expected at least one of {tokens} tokens to be kept, "
                f"got {self.mask_ratio}"
            )
        if self.encoder.embedding == "per_sensor":
            raise ValueError("encoder: expected one embedding, got one for each sensor")
        return self


class ScaleMAEConfig(Config):
    """Scale-MAE: positions on the ground, and a decoder of two resolutions."""

    encoder: EncoderConfig = EncoderConfig(positions="gsd")
    decoder_width: PositiveInt = 512
    decoder_depth: NonNegativeInt = 3
    decoder_heads: PositiveInt = 16
    fcn_width: Annotated[int, Field(gt=0, multiple_of=4)] = 512
    """Channels of the heads that paint."""
    fcn_layers: NonNegativeInt = 2
    mask_ratio: OpenFraction = 0.75
    bands: tuple[PositiveInt, PositiveInt] = (14, 224)
    """Pixels along a side below which, and up to which, structure counts as low frequency; other
    than 224, the second is the size of the input."""
    high_loss: Literal["l1", "l2"] = "l1"
    """Error of the high frequencies: the paper's, or the published code's default."""

    @model_validator(mode="after")
    def _parts_fit(self) -> ScaleMAEConfig:
        if self.encoder.positions != "gsd" or self.encoder.patch != 16:
            raise ValueError("encoder: expected positions gsd and patch 16, which the heads undo")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_heads: expected a divisor of decoder_width = {self.decoder_width}, "
                f"got {self.decoder_heads}"
            )
        return self


class ContrastConfig(Config):
    """Two sensors that see the same places: one trunk with an embedding for each of them."""

    encoder: EncoderConfig
    """With embedding `per_sensor` of the two, the first one's images first."""
    projection: PositiveInt = 128
    """Numbers by which images are compared."""
    temperature: PositiveFloat = 0.07

    @model_validator(mode="after")
    def _two_sensors(self) -> ContrastConfig:
        if len(self.encoder.sensors) != 2:
            raise ValueError(
                f"encoder: expected embedding per_sensor of 2 sensors, got "
                f"{len(self.encoder.sensors)}"
            )
        return self


class ImageTextConfig(Config):
    """CLIP with an encoder of `models.geovit` for images and a text tower of `models.clip`."""

    encoder: EncoderConfig = EncoderConfig()
    text: TextConfig = TextConfig()
    projection: PositiveInt = 128
    """Numbers by which images and captions are compared."""


class OptimizerConfig(Config):
    """AdamW with a warm-up and half a cosine, as masked autoencoders are trained."""

    learning_rate: PositiveFloat = 1.5e-4
    """For 256 images a step; it grows with the batch."""
    min_learning_rate: NonNegativeFloat = 0.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the rate grows."""
    weight_decay: NonNegativeFloat = 0.05
    beta_2: Annotated[float, Field(gt=0, lt=1)] = 0.95


class PretrainConfig(Config):
    """How a masked autoencoder is trained."""

    steps: Annotated[PositiveInt, OnResume.GROW] = 400
    batch: PositiveInt = 64
    """Images of a step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    crop: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Smallest share of an image that a random crop keeps; 1: images are not cropped."""
    mirror: bool = True
    """Mirror and turn images at random; the ground has no upper side."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the computation; parameters, statistics and losses are float32."""
    remat: bool = False
    """Recompute blocks in the backward pass."""


Preset = Literal["mae", "scale_mae", "pangaea", "torchgeo_bench"]


class EvaluationConfig(Config):
    """How frozen features are judged."""

    presets: tuple[Preset, ...] = ("scale_mae", "torchgeo_bench")
    """Protocols, one row of the table for each, see `protocols`."""
    poolings: tuple[Pooling, ...] = ("cls", "mean")
    """What of the tokens is a feature; one row for each."""
    draws: PositiveInt = 1000
    """Draws of the bootstrap."""
    batch: PositiveInt = 250
    """Images encoded at a time."""
    random_features: PositiveInt = 384
    """Filters of the random convolutions."""
    segmentation_steps: NonNegativeInt = 200
    """Steps of the linear head that segments, where pixels have labels; 0: none."""


class FinetuneConfig(Config):
    """Fine-tuning with few labels, from the pretrained encoder and from scratch."""

    shots: tuple[PositiveInt, ...] = ()
    """Labels a class, one point of the curve for each; none: nothing is fine-tuned."""
    draws: PositiveInt = 5
    """Draws of the labeled images, each with its own head; all of them are one program."""
    steps: PositiveInt = 60
    batch: PositiveInt = 16
    """Images of a step; at most those that are labeled."""
    learning_rate: PositiveFloat = 2e-3
    """AdamW's rate of the head, for this batch; lower layers have less of it, see `layer_decay`."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    """What the rate is multiplied with from a block to the one below; from scratch it is 1."""
    weight_decay: NonNegativeFloat = 0.05
    rank: PositiveInt = 4
    """Rank of LoRA's additions to queries, keys and values."""
    judged: PositiveInt = 500
    """Test images at most on which the models are judged."""


class ScenesConfig(Config):
    """Generated scenes, where no data is given."""

    scenes: Annotated[int, Field(ge=20)] = 900
    """Three fifths are learned from, a fifth chooses settings, a fifth is judged."""
    size: PositiveInt = 32
    """Pixels along a side."""
    gsd: PositiveInt = 10
    """Meters of a pixel."""
    bands: tuple[str, ...] = ("B2", "B3", "B4", "B8", "B11", "B12")


class DataConfig(Config):
    """Where images come from."""

    path: Path | None = None
    """A folder or zip of images in folders of their class, with splits.csv; None: generated
    scenes, or `scene`."""
    gsd: PositiveFloat | None = None
    """Meters of a pixel of the images in `path`; None: not known, and positions in meters are an
    error."""
    scene: Path | None = None
    """An npz of one real place: `bands_dn` [T, H, W, C] uint16 of T dates, `band_names` [C], `lulc`
    [H, W] land cover. It is mapped, nothing else is compared."""
    bands: tuple[str, ...] = ()
    """Bands of the scene; none: all 13 of Sentinel-2."""
    tile: PositiveInt = 16
    """Pixels along a side of what the encoder sees of the scene."""
    learned: OpenFraction = 0.6
    """Share of the scene's columns, from the left, that is learned from; the others are judged."""
    date: NonNegativeInt = 0
    """The date that is mapped."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.path is not None and self.scene is not None:
            raise ValueError("scene: expected none beside path")
        return self


Pretraining = Literal["mae", "satmae_group", "satmae_temporal", "scale_mae", "infonce", "clip"]


class ModelConfig(Config):
    """The encoder of a run and what it learns from; bands and size of the images are the data's."""

    objective: Pretraining = "mae"
    """Paint hidden patches (`mae`), with bands in groups (`satmae_group`), of two dates
    (`satmae_temporal`) or at two resolutions (`scale_mae`: patch 16, three bands); find the radar
    image of a place (`infonce`), or its caption (`clip`). Dates, radar and captions are those of
    generated scenes."""
    groups: tuple[tuple[str, ...], ...] = (
        ("B2", "B3", "B4", "B8"),
        ("B5", "B6", "B7", "B8A"),
        ("B11", "B12"),
    )
    """Bands that share an embedding with `satmae_group`; those that the images lack are left
    out."""
    projection: PositiveInt = 64
    """Numbers by which images are compared with radar images or captions."""

    width: PositiveInt = 96
    """A multiple of 4 and of `heads`."""
    depth: PositiveInt = 4
    heads: PositiveInt = 4
    patch: PositiveInt = 4
    """Pixels along a side of a patch, a divisor of the images'."""
    positions: Literal["sincos", "gsd"] = "sincos"
    """Places in the grid, or in meters on the ground; SatMAE and Scale-MAE have their own."""
    decoder_width: PositiveInt = 64
    decoder_depth: PositiveInt = 2
    decoder_heads: PositiveInt = 4
    mask_ratio: OpenFraction = 0.75
    norm_pix: Literal["joint", "per_band", "none"] = "joint"
    """Targets are standardized over a patch with all its bands, or each band for itself."""


class Run(TrainingRunConfig):
    """Pretrain a masked autoencoder and compare it with what is simpler."""

    method: Literal["rsfm"]
    data: DataConfig = DataConfig()
    scenes: ScenesConfig = ScenesConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    finetune: FinetuneConfig = FinetuneConfig()
