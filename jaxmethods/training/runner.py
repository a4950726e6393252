"""Runs a recipe: its stages in order, results handed on by name, then its report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmethods.config import RunConfig, mesh_of, seeds_of
from jaxmethods.devices import processes as distributed
from jaxmethods.devices.sharding import Placer, local_copy, make_mesh, put, shardings
from jaxmethods.errors import UserError
from jaxmethods.files import FileError, reason, remove, staged
from jaxmethods.layout import seed_axes
from jaxmethods.numerics.keys import named
from jaxmethods.records.progress import Progress
from jaxmethods.records.provenance import describe_environment
from jaxmethods.records.record import Record
from jaxmethods.records.run_folder import RunFolder, write_atomically
from jaxmethods.records.writers import Writer, check_writers, writer_makers
from jaxmethods.reports import report, result
from jaxmethods.stages import Compute, Recipe, Stage, Train, Write, check_recipe
from jaxmethods.training.checkpoints import CheckpointError, Checkpoints
from jaxmethods.training.compute_stage import Computed, ComputeRun
from jaxmethods.training.judging import HostMetrics, Judge, StageError
from jaxmethods.training.loop import abstract_state, seed_keys
from jaxmethods.training.stopping import Stop, stop_requested
from jaxmethods.training.train_stage import DivergedError, Trained, TrainRun
from jaxmethods.training.write_stage import WriteRun, Written

__all__ = ["DivergedError", "StageError", "evaluate", "run"]

Kept = Trained | Computed | Written
KINDS = {Train: Trained, Compute: Computed, Write: Written}
"""A stage's kind to what keeps what it finds."""


def run(
    recipe: Recipe,
    config: RunConfig,
    folder: RunFolder,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Runs all stages and the report; returns the results by the stages' names.

    Args:
        recipe: what is run.
        config: written into the folder; a resumed run must have the same, but for the fields that
            `config.OnResume` marks. Where a stage grew, later ones begin anew.
        folder: where everything is left. The caller has not claimed it.
        resume: go on from the newest checkpoints where there are any.
        progress: shows what happens; `None` shows nothing.

    Returns:
        Results of training have a leading axis of seeds [S]; arrays are of the mesh.

    Raises:
        ValueError: a recipe whose names are wrong.
        ConfigError, MissingExtraError: the mesh or a writer cannot be had here.
        RunFolderError: the folder cannot be used (see `RunFolder.claim`).
        StageError: an evaluation, a score or the report cannot be computed; what was trained is
            saved.
        CheckpointError: a checkpoint is damaged, or cannot be written.
        FileError: metrics cannot be written.
        DivergedError: a metric is not finite.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    progress = progress or Progress(quiet=True)
    stages = recipe.stages
    # What can be refused is refused before the folder is touched.
    check_recipe(recipe)
    distributed.together(lambda: check_writers(config))
    distributed.check_same(config, "the configs")
    mesh = distributed.together(lambda: make_mesh(mesh_of(config)))
    with _claimed(folder, config, resume) as grew, stop_requested() as stop:
        again = distributed.together(lambda: _begin_anew(stages, folder) if grew else [])
        kept = {stage.name: _kept(folder, stage) for stage in stages}
        reached = {name: one.reached() for name, one in kept.items()}
        distributed.check_same(reached, "the newest checkpoints")
        with ExitStack() as closing:
            closing.callback(progress.close)
            for one in kept.values():
                closing.callback(one.close)
            record = distributed.together(lambda: _open(folder, config, reached, progress, closing))
            if again:
                progress.say(f"{' and '.join(again)}: begun anew, since an earlier stage grew")
            results: dict[str, Any] = {}
            for stage in stages:
                one = _stage_run(kept[stage.name], config, mesh, record, stop)
                results[stage.name] = one.to_the_end(results)
        _report(recipe, results, folder)
    return results


def _stage_run(
    kept: Kept, config: RunConfig, mesh: Mesh, record: Record, stop: Stop
) -> TrainRun | ComputeRun | WriteRun:
    if isinstance(kept, Computed):
        return ComputeRun(kept, Placer(mesh, seeds_of(config)), record, stop)
    if isinstance(kept, Written):
        return WriteRun(kept, record, stop)
    return TrainRun(kept, config, mesh, record, stop)


def _kept(folder: RunFolder, stage: Stage) -> Kept:
    return KINDS[type(stage)](folder, stage)


@contextmanager
def _claimed(folder: RunFolder, config: RunConfig, resume: bool) -> Iterator[bool]:
    """The writer claims the folder for all processes; if it is refused, they all are.

    Yields whether the run grew (false where another process writes).
    """
    with ExitStack() as stack:
        claim = folder.claim(config, resume) if distributed.is_writer() else nullcontext(False)
        grew = distributed.together(lambda: stack.enter_context(claim))
        distributed.together(folder.check_shared)
        yield grew


def _begin_anew(stages: Sequence[Stage], folder: RunFolder) -> list[str]:
    """Removes what is kept of stages behind one that isn't at its end any more.

    They went on from what it found. Returns their names.
    """

    def unfinished(stage: Stage) -> bool:
        if not isinstance(stage, Train):
            return False
        return (Checkpoints(folder.checkpoints / stage.name).latest() or 0) < stage.steps

    first = next((place for place, stage in enumerate(stages) if unfinished(stage)), len(stages))
    begun = []
    for stage in stages[first + 1 :]:
        places = [folder.checkpoints, folder.results, folder.parts]
        if isinstance(stage, Write):  # other stages have nothing of their own beside these
            places.append(folder.path)
        there = [place / stage.name for place in places if (place / stage.name).is_dir()]
        for path in there:
            remove(path)
        if there:
            begun.append(stage.name)
    if first < len(stages):
        remove(folder.results / stages[first].name)
    return begun


def _open(
    folder: RunFolder,
    config: RunConfig,
    reached: Mapping[str, int],
    progress: Progress,
    closing: ExitStack,
) -> Record:
    """What takes down the run from the steps reached on; nothing where another process writes."""
    if not distributed.is_writer():
        return Record([], progress)
    folder.update(config)
    rows = folder.keep_metrics_until(reached)
    writers = []
    for make in writer_makers(folder, config):
        writers.append(make())
        closing.push(_closing(writers[-1]))
    write_atomically(folder.environment, json.dumps(describe_environment(), indent=1))
    return Record(writers, progress, rows)


def _closing(writer: Writer) -> Callable[..., None]:
    """Closes a writer at the end; after an error what its file still refuses is no news."""

    def close(kind: Any, error: BaseException | None, trace: Any) -> None:
        del kind, trace
        with suppress(FileError) if error is not None else nullcontext():
            writer.close()

    return close


def _report(recipe: Recipe, results: Mapping[str, Any], folder: RunFolder) -> None:
    """Has the writer put what the recipe's report makes into the folder, all of it or nothing.

    Every process must come here, and all of them learn what the writer could not do.
    """
    write = recipe.report
    if write is None:
        return
    host = {name: local_copy(results[name]) for name in recipe.reads}

    def leave() -> None:
        if not distributed.is_writer():
            return
        try:
            with staged(folder.path, shared=("figures",)) as place:
                (place / "figures").mkdir()
                write(host, place)
        except Exception as error:  # whatever a viewer or a writer of others' raises
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            raise StageError(
                f"report: cannot be written ({kind}{reason(error)}); what was trained is saved, "
                "mend it and go on with --resume"
            ) from error

    distributed.together(leave)


def evaluate(
    recipe: Recipe, config: RunConfig, folder: RunFolder, checkpoint: str, seed: int
) -> Iterator[tuple[str, int, HostMetrics]]:
    """Yields (stage, step, metrics [seeds]) of every training stage that is judged, measured anew.

    Only reads, so that the run may train meanwhile; a stage that has not begun ends the sequence.

    Args:
        recipe: the run's stages.
        config: the run's.
        folder: of the run.
        checkpoint: `best`, `latest` or a step of the last training stage; earlier ones take their
            latest.
        seed: of the evaluation's randomness.

    Yields:
        Stage, its step, and metric -> [seeds] on the host.
    """
    trained = [stage for stage in recipe.stages if isinstance(stage, Train)]
    if all(stage.evaluation is None for stage in trained):
        return  # nothing is restored, nor computed, for no numbers
    mesh = make_mesh(mesh_of(config))
    results: dict[str, Any] = {}
    for stage in recipe.stages:
        if not isinstance(stage, Train):
            results[stage.name] = KINDS[type(stage)](folder, stage).result(
                results, Placer(mesh, seeds_of(config))
            )
            if results[stage.name] is None:
                return
            continue
        kept = Trained(folder, stage)
        chosen = checkpoint if stage is trained[-1] else "latest"
        if results and kept.checkpoints.latest() is None and chosen in ("best", "latest"):
            return
        step, state, batch = restore(kept, config, mesh, results, chosen)
        results[stage.name] = kept.result(state, batch, keep=False)
        kept.close()
        # Not the keys that training begins with, if it had the same seed.
        anew = named(jax.random.key(seed), "evaluate")
        keys = put(jax.random.split(anew, seeds_of(config)), _whole(mesh))
        metrics = Judge(kept.stage, batch, _whole(mesh)).metrics(state, batch, keys)
        if metrics:
            yield stage.name, step, metrics


def read_results(recipe: Recipe, config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """Results of the stages that are at their end, up to the first that isn't; only reads."""
    mesh = make_mesh(mesh_of(config))
    results: dict[str, Any] = {}
    for stage in recipe.stages:
        kept = _kept(folder, stage)
        if isinstance(kept, Trained):
            if kept.checkpoints.latest() is None or kept.reached() < kept.stage.steps:
                break
            _, state, batch = restore(kept, config, mesh, results, "latest")
            results[stage.name] = kept.result(state, batch, keep=False)
            kept.close()
            continue
        found = kept.result(results, Placer(mesh, seeds_of(config)))
        if found is None:
            break
        results[stage.name] = found
    return results


def write_results(folder: RunFolder, headline: Sequence[str]) -> None:
    """Has the writer write `result.json` and `report.html` from what is in the folder."""

    def write() -> None:
        if distributed.is_writer():
            result.write_result(folder, headline)
            report.write_report(folder)

    distributed.together(write)  # nobody leaves while the writer is at work


def restore(
    kept: Trained, config: RunConfig, mesh: Mesh, results: Mapping[str, Any], checkpoint: str
) -> tuple[int, Any, Any]:
    """A checkpoint of a stage, and the data it goes with.

    Args:
        kept: the stage's part of the run folder.
        config: the run's.
        mesh: on which state and batch are placed.
        results: of the stages before.
        checkpoint: `best`, `latest` or a step.

    Returns:
        Its step, the state [seeds, ...] and the batch.
    """
    stage, layout = kept.stage, kept.stage.layout
    batch = Placer(mesh, seeds_of(config))(stage.data(results), layout)
    axes = seed_axes(batch, layout.per_seed)

    def place(state: Any) -> Any:
        return shardings(state, layout.state, seeds_of(config), mesh)

    keys = put(seed_keys(config)[0], _whole(mesh))
    like = abstract_state(stage.method, keys, batch, place, axes)
    step, state = _restored(kept.checkpoints, checkpoint, like)
    return step, state, batch


ATTEMPTS = 20
"""How often a reader may find that the checkpoint it chose is gone; the writer is not that fast."""


def _restored(saved: Checkpoints, checkpoint: str, like: Any) -> tuple[int, Any]:
    """Step and state of a checkpoint, which a process that trains may remove meanwhile."""
    for _ in range(ATTEMPTS - 1):
        step = _choose(saved, checkpoint)
        try:
            return step, saved.restore(step, like)
        except CheckpointError:
            if step in saved.steps():
                raise  # it is there, so it is damaged
    step = _choose(saved, checkpoint)
    return step, saved.restore(step, like)


def _choose(saved: Checkpoints, checkpoint: str) -> int:
    step = {"best": saved.best, "latest": saved.latest}.get(checkpoint, lambda: checkpoint)()
    if step is None:
        raise CheckpointError(f"checkpoints {saved.folder}: there are none yet")
    if not str(step).isdigit() or int(step) not in saved.steps():
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: expected best, latest or one of {saved.steps()}"
        )
    return int(step)


def _whole(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())
