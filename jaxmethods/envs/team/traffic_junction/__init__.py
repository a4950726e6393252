"""Traffic Junction: cars that enter and leave must pass crossings without a collision."""

from jaxmethods.envs.team.traffic_junction.curriculum import ADD_RATES, curriculum, with_add_rate
from jaxmethods.envs.team.traffic_junction.env import TrafficJunction
from jaxmethods.envs.team.traffic_junction.roads import Roads
from jaxmethods.envs.team.traffic_junction.types import Arrivals, State

__all__ = [
    "ADD_RATES",
    "Arrivals",
    "Roads",
    "State",
    "TrafficJunction",
    "curriculum",
    "with_add_rate",
]
