"""Predator-Capture-Prey: some agents see the prey, others must capture it blindly."""

from jaxmethods.envs.team.predator_capture_prey.env import PredatorCapturePrey
from jaxmethods.envs.team.predator_capture_prey.generator import RandomGenerator
from jaxmethods.envs.team.predator_capture_prey.types import State

__all__ = ["PredatorCapturePrey", "RandomGenerator", "State"]
