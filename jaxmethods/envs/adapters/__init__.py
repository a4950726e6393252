"""Published environments behind this library's multi-agent interface, one module each."""

from jaxmethods.envs.adapters.adapter import Adapted, State
from jaxmethods.envs.adapters.cleaner import Cleaner
from jaxmethods.envs.adapters.connector import Connector
from jaxmethods.envs.adapters.level_based_foraging import LevelBasedForaging
from jaxmethods.envs.adapters.robot_warehouse import RobotWarehouse
from jaxmethods.envs.adapters.search_and_rescue import SearchAndRescue
from jaxmethods.envs.adapters.smax import Smax

__all__ = [
    "Adapted",
    "Cleaner",
    "Connector",
    "LevelBasedForaging",
    "RobotWarehouse",
    "SearchAndRescue",
    "Smax",
    "State",
]
