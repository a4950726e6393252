"""The configuration of a distillation; the defaults are the paper's, or ours where it is silent."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from jaxmethods.config import Config, Fraction
from jaxmethods.language.divergences import Normalizer

DivergenceName = Literal[
    "none",
    "forward_kl",
    "reverse_kl",
    "jsd",
    "total_variation",
    "skew_forward_kl",
    "skew_reverse_kl",
    "adaptive_kl",
    "decoupled",
    "atkd",
    "osd_mix",
]
Strategy = Literal["random", "uniform", "hard", "easy", "bernoulli"]
MaskToken = Literal["id", "random", "previous", "hide"]


class ImperfectConfig(Config):
    """How gold responses are rewritten with the student's own predictions."""

    rewrite: Literal["rewrite", "masking_only", "vanilla"] = "rewrite"
    """`rewrite` fills the masked tokens with predictions; the ablations leave the mask token there,
    or change nothing: plain distillation."""
    alpha: Fraction = 0.2
    """Share of the response's tokens that is masked, its end token apart; at least one token."""
    strategy: Strategy = "random"
    """Which: random ones, evenly spaced ones, those the student is least (`hard`) or most (`easy`)
    sure of, or each with probability alpha (`bernoulli`)."""
    mask_token: MaskToken = "id"
    """What stands in their place: `mask_token_id`, a random token, the token before, or nothing
    that could be seen (`hide`)."""
    mask_token_id: NonNegativeInt = 1
    """The paper's is the first token, "<s>"."""
    fill: Literal["greedy", "sample"] = "greedy"
    """A student that knows the data by heart fills in the gold token, and the method is plain
    distillation: then sample."""
    fill_temperature: PositiveFloat = 1.0


class DivergenceConfig(Config):
    """What the student is compared with the teacher by; see `language.divergences`."""

    name: DivergenceName = "reverse_kl"
    """`none`: the likelihood alone, without a teacher."""
    temperature: PositiveFloat = 1.0
    beta: Fraction = 0.5
    """Weight of the teacher in the mixture of `jsd`."""
    skew: Fraction = 0.1
    head_mass: Fraction = 0.5
    """mu of `adaptive_kl`."""
    target_weight: NonNegativeFloat = 0.2
    """alpha of `decoupled` and `atkd`."""
    other_weight: NonNegativeFloat = 1.0
    """beta of `decoupled`."""


class KIDConfig(Config):
    """The loss of a step: divergence + mle_weight * likelihood of the gold tokens."""

    imperfect: ImperfectConfig = ImperfectConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    divergence_weight: NonNegativeFloat = 1.0
    mle_weight: NonNegativeFloat = 1.0
    mle_input: Literal["imperfect", "clean"] = "imperfect"
    """Which tokens the likelihood of the gold ones is conditioned on; `clean` costs a second pass
    of the student."""
    normalizer: Normalizer = "tokens"
    """Mean over the batch's tokens, or over rows of their means."""
    share_prefix: bool = True
    """Run the prompt once for the clean, the masked and the imperfect response."""
    logit_chunk: PositiveInt = 512
    """Tokens whose logits are there at one time."""
    micro_batches: PositiveInt = 1
    """Parts in which a batch is run, one after the other; the loss is that of the batch."""
    remat: bool = False
    """Recompute layers in the backward pass."""
    vocabulary: Annotated[int, Field(gt=0)] | None = None
    """Leading logits that are compared, where the models' paddings differ."""
