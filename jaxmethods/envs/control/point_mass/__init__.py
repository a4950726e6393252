"""Point mass: push a puck over a plane to a goal and stop there."""

from jaxmethods.envs.control.point_mass.controller import approach
from jaxmethods.envs.control.point_mass.env import PointMass
from jaxmethods.envs.control.point_mass.types import State

__all__ = ["PointMass", "State", "approach"]
