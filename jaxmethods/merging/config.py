"""Settings of the merging methods that are trained. Defaults are the papers'."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from jaxmethods.config import Config, Fraction, OnResume


class AdaMergingConfig(Config):
    """Test-time adaptation of the coefficients of task arithmetic."""

    layerwise: bool = True
    """One coefficient for every task and tensor, or one for every task."""
    initial: float = 0.3
    clamp: bool = True
    """Use the coefficients clamped to [0, 1]."""
    batch_size: PositiveInt = 16
    """Inputs of each task in a step. (The authors' code sums over two batches of 16.)"""
    learning_rate: PositiveFloat = 1e-3
    entropy_epsilon: float | None = None
    """None: exact entropy; 1e-8: log(p + 1e-8)."""
    diversity: NonNegativeFloat = 0.0
    """Weight of the entropy of the mean prediction, which is made large. Not in the paper (0);
    it keeps a weak start from collapsing to one class, see `adaptation.objective`."""
    stacked: str | None = "/layers/"
    """Leaves whose path has this regular expression in it have a leading layer axis, and every
    layer a coefficient of its own; null: none."""


class WEMoEConfig(Config):
    """Weight-ensembling mixture of experts; `ewemoe()` is the efficient variant."""

    coefficient: float = 0.3
    """lambda: of task arithmetic for the rest of the network, and of the routers' first output."""
    modules: tuple[Literal["mlp", "self_attn"], ...] = ("mlp",)
    """Parts of every block that keep their task vectors and get a router."""
    router_depth: Literal[0, 1, 2] = 2
    """Layers of the router: 0 is a free vector, 1 linear, 2 with a hidden layer."""
    shared_router: bool = False
    """One router for all blocks."""
    layer_encoding: NonNegativeInt = 0
    """Width of the sinusoidal encoding of the block's number that is put before each token; 0:
    none (the usual width is 8)."""
    prune: Fraction | None = None
    """Zero the entries of every task vector up to this quantile of magnitudes."""
    prune_router: Fraction | None = None
    """The same for the routers, after adaptation."""
    routing: Literal["sample", "batch"] = "sample"
    """Coefficients in training: every image its own, or one mean for a task's batch (faster).
    Evaluation is always per image unless asked otherwise."""
    strategy: Literal["auto", "merge", "blocks", "expertwise", "fused"] = "auto"
    """How merged modules are computed, see `experts`."""
    batch_size: PositiveInt = 16
    """Images of each task in a step."""
    learning_rate: PositiveFloat = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    """Decay the learning rate to 0 over `steps`, or keep it."""
    steps: Annotated[PositiveInt, OnResume.GROW] = 1000
    entropy_epsilon: float | None = None
    """None: exact entropy; 1e-8: log(p + 1e-8)."""
    diversity: NonNegativeFloat = 0.0
    """Weight of the entropy of the mean prediction, which is made large. Not in the paper (0);
    it keeps a weak start from collapsing to one class, see `adaptation.objective`."""


def ewemoe(prune: float = 0.9) -> WEMoEConfig:
    """E-WEMoE: pruned task vectors and one router for all blocks, learning rate constant.

    Args:
        prune: share of each task vector that is dropped.

    Returns:
        The config.
    """
    return WEMoEConfig(prune=prune, shared_router=True, schedule="constant")


class SurgeryConfig(Config):
    """Representation Surgery (features only) and SurgeryV2 (also after every block)."""

    deep: bool = False
    """SurgeryV2: correct the residual stream after every block too."""
    rank: PositiveInt = 16
    loss: Literal["l1", "l2"] = "l1"
    batch_size: PositiveInt = 16
    """Images of each task in a step."""
    learning_rate: PositiveFloat = 1e-3
    remat: bool = False
    """SurgeryV2: compute blocks again in the backward pass, which saves memory."""
