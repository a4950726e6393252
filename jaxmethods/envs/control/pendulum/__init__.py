"""Pendulum: swing a rod up with a motor too weak to lift it, and keep it there."""

from jaxmethods.envs.control.pendulum.controller import swing_up
from jaxmethods.envs.control.pendulum.env import Pendulum
from jaxmethods.envs.control.pendulum.types import State

__all__ = ["Pendulum", "State", "swing_up"]
