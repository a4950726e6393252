"""How training moves: sharpness, landscapes, spectra of weights, scaling laws, a monitor.

monitor = monitor.train_monitor()
method = watching.watched(method, every=200)
way = landscape.barrier(problem, other_params)
"""

from jaxmethods.interpret.dynamics import (
    landscape,
    monitor,
    scaling_law,
    sharpness,
    watching,
    weight_spectrum,
)

__all__ = [
    "landscape",
    "monitor",
    "scaling_law",
    "sharpness",
    "watching",
    "weight_spectrum",
]
