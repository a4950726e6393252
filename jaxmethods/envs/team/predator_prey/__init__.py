"""Predator-Prey: predators with short sight search a grid for prey that stands still."""

from jaxmethods.envs.team.predator_prey.env import PredatorPrey
from jaxmethods.envs.team.predator_prey.generator import RandomGenerator
from jaxmethods.envs.team.predator_prey.types import State

__all__ = ["PredatorPrey", "RandomGenerator", "State"]
