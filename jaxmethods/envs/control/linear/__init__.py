"""Linear systems of any sizes, with their linear-quadratic regulators."""

from jaxmethods.envs.control.linear.controller import regulator
from jaxmethods.envs.control.linear.env import Linear
from jaxmethods.envs.control.linear.types import State

__all__ = ["Linear", "State", "regulator"]
