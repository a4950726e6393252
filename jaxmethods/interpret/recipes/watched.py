"""The monitor in every training recipe: `monitor: 200` in a config."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jaxmethods.interpret.dynamics.watching import own_state, watched
from jaxmethods.layout import Rule
from jaxmethods.stages import Recipe, Train

ANCHOR = re.compile(r"(?<![\[\\])\^")
"""The beginning of a path in a pattern; not what negates a set of characters."""


def watched_recipe(recipe: Recipe, every: int) -> Recipe:
    """A recipe whose training stages are watched; their results and evaluations stay the same.

    Args:
        recipe: any.
        every: steps between two rows of the monitor.

    Returns:
        The recipe; metrics of its training stages also have those of the monitor.

    Raises:
        ValueError: a stage whose method doesn't say its loss.
    """
    stages = [_watched(one, every) if isinstance(one, Train) else one for one in recipe.stages]
    return recipe._replace(stages=stages)


def _watched(stage: Train, every: int) -> Train:
    try:
        method = watched(stage.method, every)
    except ValueError as error:
        raise ValueError(f"{error} (stage {stage.name})") from error
    result, evaluation = stage.result, stage.evaluation

    def found(state: Any, batch: Any) -> Any:
        own = own_state(state)
        return own if result is None else result(own, batch)

    if evaluation is not None:
        measure = evaluation.measure
        evaluation = evaluation._replace(
            measure=lambda state, batch, key: measure(own_state(state), batch, key)
        )
    layout = stage.layout._replace(state=_inside(stage.layout.state))
    return stage._replace(method=method, result=found, evaluation=evaluation, layout=layout)


def _inside(rules: Sequence[Rule]) -> list[Rule]:
    """Rules of a state that is a part of another."""
    return [rule._replace(pattern=ANCHOR.sub("^own/", rule.pattern)) for rule in rules]
