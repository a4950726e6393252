"""Runs from Python: what the command line does, and what a finished run holds.

import jaxmethods
run = jaxmethods.run("configs/commformer/demo.yaml", "runs/mine", seed=3)
run = jaxmethods.load_run("runs/mine")
run.metrics["train"]["success_rate"]       # [seeds], the last evaluation
run.results["train"]                       # what the stage found, leading axis of seeds
run.state("train", "best")                 # a stage's whole state at a checkpoint
policy = run.ready()                       # what was trained, to be called
model = run.diagnosable()                  # the same beside data, for jaxmethods.interpret
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxmethods import registry
from jaxmethods.config import RunConfig, merge, mesh_of, read_yaml, seeds_of
from jaxmethods.devices.sharding import make_mesh
from jaxmethods.installation.packaged_configs import resolve
from jaxmethods.records.progress import Progress
from jaxmethods.records.run_folder import RunFolder, RunFolderError
from jaxmethods.reports.result import last_judged
from jaxmethods.stages import Diagnosable, Recipe, Train
from jaxmethods.training import runner
from jaxmethods.training.train_stage import Trained


@dataclass(frozen=True)
class LoadedRun:
    """A run's folder, read."""

    folder: Path
    config: RunConfig
    recipe: Recipe
    results: dict[str, Any]
    """Stage name -> what it found; those of training have a leading axis of seeds."""
    metrics: dict[str, dict[str, np.ndarray]]
    """Stage name -> its last evaluation, name -> [seeds]."""

    def ready(self, seed: int | None = None) -> Callable[..., Any]:
        """What was trained, as a function; its docstring says of what.

        Args:
            seed: one of the run's seeds; None: its first.

        Returns:
            A jitted function: of CommFormer observation -> actions of the team, of a distillation
            observations -> actions of a student that is trained on the distilled set, of
            misconceptions token ids -> logits, of KID (SQLite file, questions) -> the queries of
            the last student (not jitted: texts).

        Raises:
            ValueError: no such seed, or a method whose results are no function.
            UserError: the run has not come to its end.
        """
        if self.recipe.ready is None:
            raise ValueError(
                f"method {self.config.method}: there is nothing to call; see run.results, "
                f"with {', '.join(self.results)}"
            )
        return self.recipe.ready(self.results, self._finished(seed))

    def diagnosable(self, seed: int | None = None) -> Diagnosable:
        """The model that was trained, beside data, as diagnostics take it.

        Args:
            seed: one of the run's seeds; None: its first.

        Returns:
            A pure function, its parameters, what it was trained on and what it was not.

        Raises:
            ValueError: no such seed, or a method that trains no model.
            UserError: the run has not come to its end.
        """
        if self.recipe.diagnosable is None:
            raise ValueError(f"method {self.config.method}: there is no model to diagnose")
        return self.recipe.diagnosable(self.results, self._finished(seed))

    def _finished(self, seed: int | None) -> int:
        """The index of a seed of a run that has come to its end."""
        first, count = self.config.seed, seeds_of(self.config)
        seed = first if seed is None else seed
        if not first <= seed < first + count:
            raise ValueError(f"seed: expected {first} to {first + count - 1}, got {seed}")
        missing = [stage.name for stage in self.recipe.stages if stage.name not in self.results]
        if missing:
            raise RunFolderError(f"{self.folder}: stage {missing[0]} is not at its end yet")
        return seed - first

    def state(self, stage: str, checkpoint: str = "latest") -> Any:
        """The whole state [seeds] of a training stage.

        Args:
            stage: its name.
            checkpoint: "best", "latest" or a step.

        Raises:
            ValueError: no such training stage.
            CheckpointError: no such checkpoint, or a damaged one.
        """
        trained = {one.name: one for one in self.recipe.stages if isinstance(one, Train)}
        if stage not in trained:
            raise ValueError(f"stage: expected one of {sorted(trained)}, got {stage!r}")
        kept = Trained(RunFolder(self.folder), trained[stage])
        mesh = make_mesh(mesh_of(self.config))
        try:
            return runner.restore(kept, self.config, mesh, self.results, checkpoint)[1]
        finally:
            kept.close()


def run(
    config: str | Path | Mapping[str, Any] | RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    quiet: bool = True,
    **changes: Any,
) -> LoadedRun:
    """Runs what a config describes, as `jaxmethods run` does, and returns what it found.

    Args:
        config: a YAML file or the name of a packaged config, a file's content, or the config of a
            run.
        out: the run folder; new or empty, unless `resume`.
        resume: go on with the run that is there.
        quiet: show no progress.
        **changes: fields of the config laid over it; nested ones as mappings: `ppo={"epochs": 5}`.

    Returns:
        The finished run: config, results, metrics, and what it trained.

    Raises:
        UserError: one of its kinds, with one line that says what is wrong.
    """
    source = str(config) if isinstance(config, str | Path) else "given"
    if isinstance(config, RunConfig):
        values: dict[str, Any] = config.model_dump(mode="json")
    else:
        values = dict(config) if isinstance(config, Mapping) else read_yaml(resolve(Path(config)))
    parsed, recipe = registry.parse(merge(values, changes), source)
    folder = RunFolder(Path(out))
    progress = Progress(quiet=quiet, headline=recipe.headline)
    results = runner.run(recipe, parsed, folder, resume, progress)
    runner.write_results(folder, recipe.headline)
    return LoadedRun(folder.path, parsed, recipe, results, _metrics(folder))


def load_run(folder: str | Path) -> LoadedRun:
    """Reads a run's folder; of a run that still trains, the stages that are at their end.

    Raises:
        RunFolderError: the folder holds no run.
        CheckpointError: a checkpoint is damaged.
        UserError: data that the config names is not there any more.
    """
    there = RunFolder(Path(folder))
    config, recipe = registry.parse(there.read_config(), str(there.config))
    results = runner.read_results(recipe, config, there)
    return LoadedRun(there.path, config, recipe, results, _metrics(there))


def _metrics(folder: RunFolder) -> dict[str, dict[str, np.ndarray]]:
    return {stage: dict(one.metrics) for stage, one in last_judged(folder.read_metrics()).items()}
