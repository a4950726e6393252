"""Configurations of the offline RL that makes a teacher, and of where its policies play.

The defaults are the published ones.
"""

from __future__ import annotations

from typing import Any

from pydantic import (
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from jaxmethods.config import Config, Fraction, OpenFraction, nearest
from jaxmethods.envs.control.episodes import BRAX, CONTROL, make_control
from jaxmethods.offline_rl.metaworld import METAWORLD
from jaxmethods.offline_rl.mujoco_returns import ENVIRONMENTS


class IQLConfig(Config):
    """Implicit Q-learning."""

    hidden: PositiveInt = 256
    n_layers: PositiveInt = 4
    """Linear layers of the policy; critics and value function have three."""
    batch: PositiveInt = 256
    discount: Fraction = 0.99
    expectile: OpenFraction = 0.7
    """tau: 0.5 values the data's own behavior, towards 1 the best of it."""
    temperature: NonNegativeFloat = 3.0
    """beta of the policy's weights exp(beta advantage); 0 clones the data's behavior."""
    max_weight: PositiveFloat = 100.0
    learning_rate: PositiveFloat = 3e-4
    target_rate: OpenFraction = 5e-3
    """Share of the new critics in the target critics' moving average."""
    scale_rewards: bool = True
    """Train on rewards scaled so that the episodes' returns span 1000. The teacher's critics are
    in the simulator's units either way."""


class CalQLConfig(Config):
    """Calibrated Q-learning, with the offline settings of the CORL implementation."""

    hidden: PositiveInt = 256
    n_layers: PositiveInt = 4
    """Linear layers of the policy; critics have three."""
    batch: PositiveInt = 256
    discount: Fraction = 0.99
    policy_rate: PositiveFloat = 3e-5
    """Step size of Adam for the policy and the entropy's temperature."""
    critic_rate: PositiveFloat = 3e-4
    target_rate: OpenFraction = 5e-3
    alpha: NonNegativeFloat = 10.0
    """Weight of the conservative term."""
    n_actions: PositiveInt = 10
    """Actions drawn in each of the three ways at which values are pushed down."""
    temperature: PositiveFloat = 1.0
    """Temperature of the soft maximum over these actions."""
    importance_sampling: bool = True
    """Divide each of them by its density, so that the soft maximum is one over all actions."""
    calibrated: bool = True
    """Don't push values below the data's Monte-Carlo returns; False is CQL."""
    backup_entropy: bool = False
    """Subtract the entropy term in the critics' targets."""
    target_entropy: float | None = None
    """Entropy the temperature is tuned to; None: -A."""
    cloning_steps: NonNegativeInt = 0
    """First steps in which the policy maximizes the data's likelihood instead of the critics."""


class PlayedEnvironmentConfig(Config):
    """Which environment; every further field is an argument of its constructor."""

    model_config = ConfigDict(extra="allow")

    name: str
    """hopper, walker2d, halfcheetah or reacher (MuJoCo, extra `rl`); pendulum, point_mass, arm or
    linear (ours, in JAX); brax:TASK with one of brax's tasks (in JAX; extra `brax`); or
    metaworld:TASK with one of Meta-World's (MuJoCo, extra `metaworld`)."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        known = {*ENVIRONMENTS, *CONTROL}
        if not name.startswith((BRAX, METAWORLD)) and name not in known:
            raise ValueError(f"unknown environment {name!r}{nearest(name, known)}")
        return name

    @property
    def in_jax(self) -> bool:
        """Whether episodes are played inside of a compiled program."""
        return self.name.startswith(BRAX) or self.name in CONTROL

    def make(self) -> Any:
        """An environment in JAX. Raises `ValueError` for an unknown name or argument."""
        return make_control(self.name, **(self.model_extra or {}))
