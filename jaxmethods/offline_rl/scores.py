"""Normalized scores: 0 is a random policy, 100 an expert, by each simulator's reference returns.

    score = 100 (R - R_random) / (R_expert - R_random)

Scores of different simulators are never comparable, which is why the D4RL constants are known by
the names of the MuJoCo environments and brax's environments have none: their scores are returns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxmethods.config import nearest


class ReferenceReturns(NamedTuple):
    """Undiscounted returns that define 0 and 100."""

    random: float
    expert: float

    def score(self, returns: Any) -> Any:
        """Returns [...], of a NumPy or JAX type, as scores [...] in percent."""
        return 100.0 * (returns - self.random) / (self.expert - self.random)


REFERENCE: dict[str, ReferenceReturns] = {
    "hopper": ReferenceReturns(-20.272305, 3234.3),
    "halfcheetah": ReferenceReturns(-280.178953, 12135.0),
    "walker2d": ReferenceReturns(1.629008, 4592.3),
    "reacher": ReferenceReturns(-43.3, -3.6),
    "pendulum": ReferenceReturns(124.7, 190.8),
    "point_mass": ReferenceReturns(18.8, 86.4),
    "arm": ReferenceReturns(21.3, 66.2),
}
"""The first three are D4RL's. Reacher's are means over 100 episodes of uniform actions and 30 of a
scripted controller. Those of our own environments are means of uniform actions and of the scripted
controller: pendulum's over 200 episodes, standard error 1.3 and 0.4, point mass's over 400, 0.4 and
0.2, and arm's over 400, 0.4 and 0.7."""


def reference_returns(env_name: str) -> ReferenceReturns:
    """The constants of an environment. Raises `ValueError` where there are none."""
    if env_name not in REFERENCE:
        raise ValueError(
            f"env_name: no reference returns of {env_name!r}{nearest(env_name, REFERENCE)}"
        )
    return REFERENCE[env_name]


def normalized_score(env_name: str, returns: Any) -> Any:
    """Returns [...], of a NumPy or JAX type, as scores [...] in percent.

    Args:
        env_name: a name of `REFERENCE`.
        returns: [...], of a NumPy or JAX type.

    Returns:
        [...] in per cent, of the same type.
    """
    return reference_returns(env_name).score(returns)


def score(env_name: str, returns: Any) -> Any:
    """Normalized scores of returns [...] where 0 and 100 are known, else the returns themselves."""
    return normalized_score(env_name, returns) if env_name in REFERENCE else returns


def score_name(env_name: str) -> str:
    """What the numbers of `score` are, for axes and tables."""
    return "normalized score" if env_name in REFERENCE else "return"
