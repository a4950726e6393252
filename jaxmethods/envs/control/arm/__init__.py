"""Arm: bring the tip of a chain of three links to a target on the plane."""

from jaxmethods.envs.control.arm.controller import reach
from jaxmethods.envs.control.arm.env import Arm, joints
from jaxmethods.envs.control.arm.types import State

__all__ = ["Arm", "State", "joints", "reach"]
