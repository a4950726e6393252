"""Checkpoints of one stage, by orbax: the two newest and the best, each whole or absent."""

from __future__ import annotations

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxmethods.errors import UserError
from jaxmethods.method import State


class CheckpointError(UserError):
    """A checkpoint that is damaged or belongs to another program."""


class Checkpoints:
    """Saves and restores the state of one stage, numbered by step."""

    def __init__(self, folder: Path, scored: bool = False):
        """`scored`: the best checkpoint is kept besides the two newest."""
        self.folder = folder.absolute()
        kept: list[checkpoint_managers.PreservationPolicy] = [checkpoint_managers.LatestN(2)]
        if scored:
            best = checkpoint_managers.BestN(
                get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
            )
            kept.append(best)
        options = ocp.CheckpointManagerOptions(
            best_fn=_score if scored else None,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"checkpoints {self.folder}: {_first_line(error)}") from error

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the highest score; the latest if none was scored."""
        return self._manager.best_step() if self.steps() else None

    def path(self, step: int) -> Path:
        return self.folder / str(step)

    def save(self, step: int, state: State, score: float | None) -> None:
        """Saves unless this step is saved already. `score`: higher is better."""
        if step in self.steps():
            return
        metrics = None if score is None else {"score": score}
        # The mapping around it lets a state be a bare array, which orbax would refuse.
        saved = ocp.args.StandardSave({"state": state})
        self._manager.save(step, args=saved, metrics=metrics, force=True)

    def restore(self, step: int, like: State) -> State:
        """Restores a step into the structure, shapes, dtypes and shardings of `like`.

        Raises:
            CheckpointError: the checkpoint is damaged or holds something else.
        """
        try:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, {"state": like})
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            return restored["state"]
        except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
            others = [other for other in self.steps() if other != step]
            hint = f"; remove that folder to go on from step {others[-1]}" if others else ""
            raise CheckpointError(
                f"checkpoint {self.path(step)}: cannot be restored ({_first_line(error)}){hint}"
            ) from error

    def close(self) -> None:
        self._manager.close()


def _score(metrics: dict[str, float]) -> float:
    return metrics["score"]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]
