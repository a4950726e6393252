"""The configuration of a distillation; the defaults are the paper's."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from jaxmethods.config import Config, Momentum

Objective = Literal["dbc", "pbc", "pbc_scaled", "avpbc"]


class StudentConfig(Config):
    """The policy that is trained on the synthetic set."""

    kind: Literal["tanh_gaussian", "deterministic"] = "tanh_gaussian"
    n_layers: PositiveInt = 4
    """Linear layers; of `tanh_gaussian` (`deterministic` always has three)."""
    hidden: PositiveInt = 256
    residual: bool = False

    @model_validator(mode="after")
    def _deep_enough(self) -> StudentConfig:
        if self.residual and self.n_layers < 3:
            raise ValueError(f"n_layers: expected at least 3 with residual, got {self.n_layers}")
        return self


class OBDConfig(Config):
    """One distillation: the synthetic set, the inner training, the outer objective and update."""

    objective: Objective = "avpbc"
    """What the student is compared with: the data's actions (`dbc`), the teacher's (`pbc`), the
    teacher's with weight beta_w q (`avpbc`), or with that weight's batch mean (`pbc_scaled`)."""
    n_syn: PositiveInt = 256
    """N: synthetic pairs."""
    syn_init: Literal["data", "noise", "top_q", "cluster_q"] = "data"
    """Where they start: random rows of the data, N(0, I) states with uniform actions, the rows of
    the highest q, or of each of N clusters the row of the highest q."""
    student: StudentConfig = StudentConfig()
    inner_steps: PositiveInt = 100
    """T: full-batch steps of behavioral cloning from a fresh student."""
    inner_lr: NonNegativeFloat = 0.1
    inner_momentum: Momentum = 0.0
    inner_noise: NonNegativeFloat = 1.0
    """Scale of the student's action noise in the inner loop; 0 clones with deterministic actions,
    an ablation."""
    outer_lr: NonNegativeFloat = 0.1
    outer_momentum: Momentum = 0.9
    clip: PositiveFloat = 2.0
    """Largest joint norm of the gradient to states and actions."""
    batch: PositiveInt = 2560
    """B: states of the outer loss, drawn from the data without replacement."""
    beta_w: NonNegativeFloat = 0.02
    """Weight of a state is beta_w q1(s, a*)."""
    weight_norm: Literal["none", "mean"] = "none"
    """Divide the weights by their batch mean."""
    weight_clip_min: float | None = None
    """Smallest weight; 0 keeps a critic with negative values from pushing students away."""
    n_inits: PositiveInt = 1
    """J: students whose gradients are averaged in one outer step."""
    init_pool: NonNegativeInt = 0
    """Draw this many initial students once and pick from them; 0: a fresh one each time. Saves the
    orthogonalization at every step, which is slow on a GPU."""
    mode: Literal["mixed", "mixed_saved", "reverse", "remat"] = "mixed"
    """How the gradient through the inner loop is computed; the numbers are the same."""
    truncate: NonNegativeInt | None = None
    """Differentiate through this many of the last inner steps only (biased); None: all."""
    replay_noise: bool = True
    """False evaluates the backward pass with fresh noise, as the published code does: then the
    gradient is not that of the loss."""

    @model_validator(mode="after")
    def _fields_fit(self) -> OBDConfig:
        if not self.replay_noise and self.mode != "mixed":
            raise ValueError(f"mode: expected 'mixed' with replay_noise = false, got {self.mode!r}")
        if self.truncate is not None and self.mode not in ("mixed", "mixed_saved"):
            raise ValueError(
                f"mode: expected 'mixed' or 'mixed_saved' with truncate, got {self.mode!r}"
            )
        return self
