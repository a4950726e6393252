"""Pictures of Predator-Capture-Prey."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from jaxmethods.envs.team.predator_capture_prey.types import State
from jaxmethods.envs.team.predator_prey.viewer import draw_prey
from jaxmethods.envs.team.viewer import DONE, GridViewer, spread, team_color

REACHED = "#F08C00"


class PredatorCapturePreyViewer(GridViewer):
    """Perception agents are discs, capture agents squares, over the windows they see.

    A rim shows what is done: green for perception agents on the prey and for capture agents
    that have captured it, orange for capture agents that are there and haven't.
    """

    def __init__(self, dim: int, vision: int, capture_vision: int) -> None:
        super().__init__(dim, dim)
        self.vision = vision
        self.capture_vision = capture_vision

    def caption(self, state: State) -> str:
        """How many agents have reached the prey and how many have captured it."""
        return (
            f"{int(np.sum(state.reached))} of {len(state.reached)} reached, "
            f"{int(np.sum(state.captured))} of {len(state.captured)} captured"
        )

    def draw(self, axes: Axes, state: State) -> None:
        """Draws windows, the prey and both kinds of agents."""
        self.draw_lines(axes)
        agents = np.concatenate([state.perception, state.capture])
        seeing = len(state.perception)
        for index, position in enumerate(agents):
            vision = self.vision if index < seeing else self.capture_vision
            if vision >= 0:
                self.draw_window(axes, position, vision, team_color(index))
        for position in np.asarray(state.prey):
            draw_prey(axes, position)
        for index, (center, radius) in enumerate(spread(agents)):
            done = index < seeing or bool(state.captured[index - seeing])
            ring = (DONE if done else REACHED) if state.reached[index] else None
            label, square = str(index + 1), index >= seeing
            self.draw_token(axes, center, radius, team_color(index), label, square, ring)
