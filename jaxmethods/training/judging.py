"""One rule of judging: measures of all seeds on the mesh, then what only a host can say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxmethods.devices.sharding import local_copy
from jaxmethods.errors import UserError
from jaxmethods.files import reason
from jaxmethods.layout import seed_axes
from jaxmethods.method import Batch, State
from jaxmethods.stages import Train

HostMetrics = dict[str, np.ndarray]


class StageError(UserError):
    """What a stage needs cannot be had: its evaluation, score or report cannot be computed."""


class Judge:
    """The evaluation of one stage, compiled once for all evaluations of a shape."""

    def __init__(self, stage: Train, batch: Batch, whole: NamedSharding | None = None):
        """`whole`: where measures go on a mesh of several devices."""
        self.stage = stage
        self._measure = None
        if stage.evaluation is not None:
            axes = (0, seed_axes(batch, stage.layout.per_seed), 0)
            mapped = jax.vmap(stage.evaluation.measure, axes)
            self._measure = jax.jit(mapped, out_shardings=whole)

    def check(self, state: State, batch: Batch, keys: jax.Array) -> None:
        """Raises `StageError`, before the first step, for what would fail at the first evaluation.

        Nothing is computed: measures are traced, and the host's judge is not asked.
        """
        if self._measure is None or self.stage.evaluation is None:
            return
        try:
            measures = jax.eval_shape(self._measure, state, batch, keys)
        except Exception as error:  # whatever tracing a function of others' raises
            raise self._failure(error) from error
        if self.stage.evaluation.judge is None:
            self._check_metrics(measures)

    def metrics(self, state: State, batch: Batch, keys: jax.Array) -> HostMetrics:
        """Metrics [seeds]; empty for a stage without evaluation.

        Args:
            keys: [seeds]; the same keys give the same metrics.

        Raises:
            StageError: they cannot be computed, or one that the stage names is not among them.
        """
        if self._measure is None or self.stage.evaluation is None:
            return {}
        try:
            # Every process judges its own copy: what is said is the same in all of them.
            measures = jax.device_get(local_copy(self._measure(state, batch, keys)))
            judge = self.stage.evaluation.judge
            found = measures if judge is None else judge(measures)
            metrics = {name: np.asarray(value) for name, value in found.items()}
        except Exception as error:  # devices and the simulators of others fail in ways of their own
            raise self._failure(error) from error
        self._check_metrics(metrics)
        return metrics

    def _check_metrics(self, metrics: Mapping[str, Any]) -> None:
        evaluation = self.stage.evaluation
        assert evaluation is not None
        named = [("score", name) for name in (evaluation.score,) if name is not None]
        for field, name in [*named, *(("along", name) for name in evaluation.along)]:
            if name not in metrics:
                raise StageError(
                    f"stage {self.stage.name}: {field}: expected one of the evaluation's metrics "
                    f"({', '.join(metrics)}), got {name!r}"
                )

    def _failure(self, error: Exception) -> StageError:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        return StageError(
            f"stage {self.stage.name}: its evaluation cannot be computed ({kind}{reason(error)})"
        )
