"""The one training loop: stages in order, chunks of steps on the device, exact resume.

A chunk is one XLA program: `log_every` calls of `Method.step` in a device-side loop, all
seeds vmapped, the state donated. The host looks up only between chunks: it fetches the
chunk's metrics once, checks that they are finite, evaluates and saves when due, and stops
cleanly when a signal asked for it.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmethods.config import LoopConfig, RunConfig
from jaxmethods.errors import UserError
from jaxmethods.files import FileError, reason, remove, staged
from jaxmethods.keys import named
from jaxmethods.method import Batch, Method, Stage, State
from jaxmethods.training import distributed
from jaxmethods.training.checkpoints import CheckpointError, Checkpoints
from jaxmethods.training.environment import describe_environment
from jaxmethods.training.progress import Progress
from jaxmethods.training.run_folder import RunFolder, write_atomically
from jaxmethods.training.sharding import local_copy, make_mesh, put, replicated, shardings
from jaxmethods.training.writers import Writer, check_writers, writer_makers

HostMetrics = dict[str, np.ndarray]


class DivergedError(UserError):
    """A metric became NaN or infinite."""

    code = 1


class StageError(UserError):
    """What a stage needs cannot be had: its evaluation or score cannot be computed."""


class Interrupted(UserError):
    """SIGINT or SIGTERM asked the run to stop; everything worth keeping is saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.code = 128 + signal_number


class Chunk(NamedTuple):
    """The compiled hot path of a stage."""

    run: Callable[[State, Batch, jax.Array], tuple[State, Any]]
    """(state, batch, count) -> (state after `count` steps, metrics [length, seeds])."""
    compile_seconds: float


def seed_keys(config: RunConfig) -> tuple[jax.Array, jax.Array]:
    """Keys [seeds] for initialisation and for evaluation; seed s alone gives the same keys."""
    seeds = jnp.arange(config.seeds) + config.seed
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
    return keys[:, 0], keys[:, 1]


def init_state(
    method: Method,
    keys: jax.Array,
    batch: Batch,
    place: Callable[[State], Any] = lambda state: None,
    batch_axes: Any = None,
) -> State:
    """Initial states of all seeds, with a leading seed axis and no weakly typed leaf.

    `place` maps the abstract state to its leaves' shardings; by default JAX decides. `batch_axes`
    is that of `Stage`.
    """

    def init(keys: jax.Array, batch: Batch) -> State:
        state = jax.vmap(method.init, (0, batch_axes))(keys, batch)
        # A weak type would turn strong after one step, which would be a second trace.
        return jax.tree.map(_strongly_typed, state)

    placed = place(jax.eval_shape(init, keys, batch))
    # Runs once, so that optimising it would take longer than it saves.
    quick = {"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=placed, compiler_options=quick)(keys, batch)


def compile_chunk(
    method: Method, state: State, batch: Batch, length: int, batch_axes: Any = None
) -> Chunk:
    """Compiles up to `length` steps of all seeds into one program; `step` is traced once.

    The state keeps its shardings; metrics come out whole on every device. `batch_axes` is that of
    `Stage`.
    """
    step = jax.jit(jax.vmap(method.step, (0, batch_axes)))

    def chunk(state: State, batch: Batch, count: jax.Array) -> tuple[State, Any]:
        shapes = jax.eval_shape(step, state, batch)[1]
        buffer = jax.tree.map(lambda m: jnp.zeros((length, *m.shape), m.dtype), shapes)

        def one(index: jax.Array, carry: tuple[State, Any]) -> tuple[State, Any]:
            state, buffer = carry
            state, metrics = step(state, batch)
            return state, jax.tree.map(lambda b, m: b.at[index].set(m), buffer, metrics)

        # A traced bound: the last chunk may be shorter and still be the same program.
        return jax.lax.fori_loop(0, count, one, (state, buffer))

    start = time.perf_counter()
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    jitted = jax.jit(chunk, donate_argnums=0, out_shardings=(placed, replicated(state)))
    compiled = jitted.lower(state, batch, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    return Chunk(compiled, time.perf_counter() - start)


def train(
    stages: Sequence[Stage],
    config: RunConfig,
    folder: RunFolder,
    resume: bool = False,
    progress: Progress | None = None,
) -> list[State]:
    """Runs all stages and returns their final states, each with a leading seed axis [S].

    Args:
        stages: run in order; names are unique.
        config: written into the folder; a resumed run must have the same, but for the fields that
            `config.OnResume` marks. Where a stage grew, later ones begin anew.
        folder: where everything is left. The caller has not claimed it.
        resume: go on from the newest checkpoints where there are any.
        progress: shows what happens; `None` shows nothing.

    Raises:
        ConfigError, MissingExtraError: the mesh or a writer cannot be had here.
        RunFolderError: the folder cannot be used (see `RunFolder.claim`).
        StageError: an evaluation or a score cannot be computed; what was trained is saved.
        CheckpointError: a checkpoint is damaged, or cannot be written.
        FileError: metrics cannot be written.
        DivergedError: a metric is not finite.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    progress = progress or Progress(quiet=True)
    # What can be refused is refused before the folder is touched.
    distributed.together(lambda: check_writers(config))
    distributed.together(lambda: _check_scores(stages))
    distributed.check_same(config, "the configs")
    mesh = distributed.together(lambda: make_mesh(config.mesh))
    with _claimed(folder, config, resume) as grew, _stop_requested() as stop:
        again = distributed.together(lambda: _begin_anew(stages, folder) if grew else [])
        saved = {stage.name: _checkpoints(folder, stage) for stage in stages}
        reached = {name: checkpoints.latest() or 0 for name, checkpoints in saved.items()}
        distributed.check_same(reached, "the newest checkpoints")
        with ExitStack() as closing:
            closing.callback(progress.close)
            for checkpoints in saved.values():
                closing.callback(checkpoints.close)
            clock, writers = distributed.together(lambda: _open(folder, config, reached, closing))
            if again:
                progress.say(f"{' and '.join(again)}: begun anew, since an earlier stage grew")
            finished: list[State] = []
            for stage in stages:
                run = _StageRun(
                    stage, config, mesh, saved[stage.name], writers, progress, clock, stop
                )
                finished.append(run.to_the_end(finished))
    return finished


def _check_scores(stages: Sequence[Stage]) -> None:
    for stage in stages:
        if stage.score is not None and stage.evaluate is None and stage.judge is None:
            raise StageError(
                f"stage {stage.name}: score {stage.score!r}: expected an evaluation that says it"
            )


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
    """Removes the checkpoints of stages behind one that isn't at its end any more.

    They went on from what it found. Returns their names.
    """
    reached = {stage.name: _checkpoints(folder, stage).latest() or 0 for stage in stages}
    unfinished = [place for place, stage in enumerate(stages) if reached[stage.name] < stage.steps]
    behind = stages[unfinished[0] + 1 :] if unfinished else []
    begun = [stage.name for stage in behind if reached[stage.name]]
    for name in begun:
        remove(folder.checkpoints / name)
    return begun


def _open(
    folder: RunFolder, config: RunConfig, reached: Mapping[str, int], closing: ExitStack
) -> tuple[_Clock, list[Writer]]:
    """What takes down the run from the steps reached on; nothing where another process writes."""
    if not distributed.is_writer():
        return _Clock(0.0), []
    folder.update(config)
    rows = folder.keep_metrics_until(reached)
    writers = []
    for make in writer_makers(folder, config):
        writers.append(make())
        closing.push(_closing(writers[-1]))
    write_atomically(folder.environment, json.dumps(describe_environment(), indent=1))
    return _Clock(rows[-1].get("seconds") or 0.0 if rows else 0.0), writers


def _closing(writer: Writer) -> Callable[..., None]:
    """Closes a writer at the end; after an error what its file still refuses is no news."""

    def close(kind: Any, error: BaseException | None, trace: Any) -> None:
        del kind, trace
        with suppress(FileError) if error is not None else nullcontext():
            writer.close()

    return close


class _Clock:
    """Seconds of training so far, those of the resumed run included."""

    def __init__(self, before: float):
        self._start = time.perf_counter() - before

    def seconds(self) -> float:
        return time.perf_counter() - self._start


class _Stop:
    """The number of the signal that asked to stop, if one did."""

    signal_number: int | None = None

    def agreed(self) -> int | None:
        """The same in all processes: a signal to one of them stops all."""
        return distributed.agree(self.signal_number or 0) or None


@contextmanager
def _stop_requested() -> Iterator[_Stop]:
    """Turns the first SIGINT or SIGTERM into a request; a second SIGINT interrupts at once."""
    stop = _Stop()

    def request(signal_number: int, frame: Any) -> None:
        del frame
        stop.signal_number = signal_number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: the caller handles signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _StageRun:
    """One stage on its way from its newest checkpoint to its last step."""

    def __init__(
        self,
        stage: Stage,
        config: RunConfig,
        mesh: Mesh,
        checkpoints: Checkpoints,
        writers: Sequence[Writer],
        progress: Progress,
        clock: _Clock,
        stop: _Stop,
    ):
        self.stage = stage
        self.loop: LoopConfig = config.training
        self.seeds = config.seeds
        self.checkpoints = checkpoints
        self.writers = writers
        self.progress = progress
        self.clock = clock
        self.stop = stop
        self.mesh = mesh
        whole = NamedSharding(self.mesh, PartitionSpec())
        self.init_keys, self.evaluation_keys = put(seed_keys(config), whole)
        counts = [np.int32(count) for count in range(config.training.log_every + 1)]
        self.counts = put(counts, whole)
        evaluate = stage.evaluate
        self.evaluate = (
            None if evaluate is None else jax.jit(jax.vmap(evaluate), out_shardings=whole)
        )

    def to_the_end(self, finished: Sequence[State]) -> State:
        batch = self._placed(self.stage.data(finished))
        step, state = self._begin(batch)
        if step >= self.stage.steps:
            return state
        self._check_evaluation(state)
        self.progress.stage(self.stage.name, step, self.stage.steps)
        chunk = compile_chunk(
            self.stage.method, state, batch, self.loop.log_every, self.stage.batch_axes
        )
        self.progress.compiled(chunk.compile_seconds)
        while step < self.stage.steps:
            signal_number = self.stop.agreed()
            if signal_number is not None:
                self._save_and_stop(step, state, signal_number)
            # Chunks end at multiples of log_every, wherever the run was resumed.
            count = min(self.loop.log_every - step % self.loop.log_every, self.stage.steps - step)
            start = time.perf_counter()
            state, buffer = chunk.run(state, batch, self.counts[count])
            metrics = {k: v[:count] for k, v in jax.device_get(buffer).items()}
            seconds = time.perf_counter() - start
            self._check_finite(step, metrics)
            step += count
            row = {f"train/{k}": v.mean(0) for k, v in metrics.items()}
            row["steps_per_second"] = np.float64(count / seconds)
            try:
                evaluation = distributed.together(lambda: self._evaluate(step, state, batch))  # noqa: B023
            except (StageError, distributed.ElsewhereError) as error:
                # What was trained is not lost with what could not be said of it.
                self._write(step, row)
                self.checkpoints.save(step, state, None)
                raise StageError(
                    f"{error}; the state is saved at step {step}, mend it and go on with --resume"
                ) from error
            self._write(step, row | evaluation)
            if self._due(step, self.loop.checkpoint_every):
                self.checkpoints.save(step, state, self._score(evaluation))
        return state

    def _placed(self, batch: Batch) -> Batch:
        rules, axes = self.stage.batch_rules, self.stage.batch_axes
        return put(batch, shardings(batch, rules, self.seeds, self.mesh, axes))

    def _begin(self, batch: Batch) -> tuple[int, State]:
        def place(state: State) -> Any:
            return shardings(state, self.stage.rules, self.seeds, self.mesh)

        state = init_state(self.stage.method, self.init_keys, batch, place, self.stage.batch_axes)
        step = self.checkpoints.latest()
        if step is None:
            return 0, state
        return step, distributed.together(lambda: self.checkpoints.restore(step, state))

    def _due(self, step: int, every: int) -> bool:
        """True when a multiple of `every` lies in the chunk that ends here, and at the end."""
        chunk_start = (step - 1) // self.loop.log_every * self.loop.log_every
        return step // every > chunk_start // every or step == self.stage.steps

    def _check_evaluation(self, state: State) -> None:
        """Raises `StageError` before the first step for what would fail at the first evaluation."""
        if self.evaluate is None:
            return
        try:
            metrics = jax.eval_shape(self.evaluate, state, self.evaluation_keys)
        except Exception as error:  # whatever tracing a function of others' raises
            raise StageError(f"stage {self.stage.name}: {_unevaluated(error)}") from error
        if self.stage.judge is None:
            _check_score(self.stage, metrics)

    def _evaluate(self, step: int, state: State, batch: Batch) -> HostMetrics:
        if not self._due(step, self.loop.evaluate_every):
            return {}
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.evaluation_keys, step)
        metrics = _judged(self.stage, self.evaluate, state, batch, keys)
        return {f"evaluate/{name}": value for name, value in metrics.items()}

    def _score(self, evaluation: HostMetrics) -> float | None:
        """The mean over seeds; it isn't finite where one seed's isn't, and then counts as none."""
        if not evaluation or self.stage.score is None:
            return None
        return float(np.mean(evaluation[f"evaluate/{self.stage.score}"]))

    def _write(self, step: int, metrics: HostMetrics) -> None:
        row = {"stage": self.stage.name, "step": step, "seconds": round(self.clock.seconds(), 3)}
        row |= {name: _plain(value) for name, value in metrics.items()}
        for writer in self.writers:
            writer.write(row)
        self.progress.row(row)

    def _check_finite(self, step: int, metrics: HostMetrics) -> None:
        wrong = []
        for name, values in metrics.items():
            for index, seed in np.argwhere(~np.isfinite(values.reshape(len(values), -1))):
                wrong.append((step + int(index) + 1, name, int(seed), values[index].ravel()[seed]))
        if not wrong:
            return
        at, name, seed, value = min(wrong, key=lambda w: w[0])
        whose = f" of seed {seed}" if self.seeds > 1 else ""
        last = self.checkpoints.latest()
        good = (
            "there is no checkpoint"
            if last is None
            else (f"the last good checkpoint is {self.checkpoints.path(last)}")
        )
        raise DivergedError(
            f"stage {self.stage.name}, step {at}: metric {name!r}{whose} is {value}; {good}"
        )

    def _save_and_stop(self, step: int, state: State, number: int) -> None:
        name = signal.Signals(number).name
        if step == 0:
            raise Interrupted(f"{name}: stopped before the first step; nothing to save", number)
        self.checkpoints.save(step, state, None)
        raise Interrupted(
            f"{name}: stopped and saved at step {step} of {self.stage.steps} "
            f"(stage {self.stage.name}); go on with --resume",
            number,
        )


def _plain(value: np.ndarray) -> Any:
    """One number for one seed, a list for several; integers stay integers, not finite is None."""
    numbers = np.asarray(value).reshape(-1)
    flat = [v if ok else None for v, ok in zip(numbers.tolist(), np.isfinite(numbers), strict=True)]
    return flat[0] if len(flat) == 1 else flat


def _strongly_typed(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def draw_figures(stages: Sequence[Stage], finished: Sequence[State], folder: Path) -> None:
    """Lets every stage draw the first seed's final state into `folder`."""
    for stage, state in zip(stages, finished, strict=True):
        if stage.draw is None:
            continue
        first = jax.tree.map(lambda leaf: leaf[0], local_copy(state))
        _leave_behind(stage, "figures", partial(stage.draw, first), folder)


def evaluate(
    stages: Sequence[Stage], config: RunConfig, folder: RunFolder, checkpoint: str, seed: int
) -> Iterator[tuple[str, int, HostMetrics]]:
    """Yields (stage, step, metrics [seeds]) of every evaluated stage of a run.

    Only reads, so that the run may train meanwhile; a stage that has not begun ends the sequence.

    Args:
        checkpoint: `best`, `latest` or a step of the last stage; earlier stages take their latest.
        seed: of the evaluation's randomness.
    """
    finished: list[State] = []
    for stage in stages:
        saved = _checkpoints(folder, stage)
        chosen = checkpoint if stage is stages[-1] else "latest"
        if finished and saved.latest() is None and chosen in ("best", "latest"):
            return
        batch = stage.data(finished)
        state = init_state(stage.method, seed_keys(config)[0], batch, batch_axes=stage.batch_axes)
        step, state = _restored(saved, chosen, state)
        saved.close()
        finished.append(state)
        # Not the keys that training begins with, if it had the same seed.
        keys = jax.random.split(named(jax.random.key(seed), "evaluate"), config.seeds)
        evaluate = stage.evaluate and jax.jit(jax.vmap(stage.evaluate))
        metrics = _judged(stage, evaluate, state, batch, keys)
        if metrics:
            yield stage.name, step, metrics


def export_results(stages: Sequence[Stage], finished: Sequence[State], folder: Path) -> None:
    """Lets every stage write its final states' results into the run folder, all or none of them."""
    for stage, state in zip(stages, finished, strict=True):
        if stage.export is None:
            continue
        _leave_behind(stage, "results", partial(stage.export, local_copy(state)), folder)


def _leave_behind(stage: Stage, what: str, write: Callable[[Path], None], folder: Path) -> None:
    """Has the writer put what a stage leaves behind into a folder, all of it or nothing.

    Every process must come here, and all of them learn what the writer could not do.
    """

    def leave() -> None:
        if not distributed.is_writer():
            return
        try:
            with staged(folder, shared=("figures",)) as place:
                write(place)
        except Exception as error:  # whatever a viewer or a writer of others' raises
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            raise StageError(
                f"stage {stage.name}: its {what} cannot be written ({kind}{reason(error)}); "
                "what was trained is saved, mend it and go on with --resume"
            ) from error

    distributed.together(leave)


def _judged(
    stage: Stage,
    evaluate: Callable[[State, jax.Array], Any] | None,
    state: State,
    batch: Batch,
    keys: jax.Array,
) -> HostMetrics:
    """What the compiled `evaluate` and the stage's `judge` say, together.

    Raises:
        StageError: one of them fails, or the stage's score is not among what they say.
    """
    metrics: HostMetrics = {}
    try:
        if evaluate is not None:
            metrics |= jax.device_get(evaluate(state, keys))
        if stage.judge is not None:
            # Every process judges its own copy: what is said is the same in all of them.
            judged = stage.judge(*local_copy((state, batch, keys)))
            metrics |= {name: np.asarray(value) for name, value in judged.items()}
    except Exception as error:  # devices and the simulators of others fail in ways of their own
        raise StageError(f"stage {stage.name}: {_unevaluated(error)}") from error
    _check_score(stage, metrics)
    return metrics


def _unevaluated(error: Exception) -> str:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"its evaluation cannot be computed ({kind}{reason(error)})"


def _check_score(stage: Stage, metrics: Mapping[str, Any]) -> None:
    if stage.score is not None and stage.score not in metrics:
        raise StageError(
            f"stage {stage.name}: score: expected one of the evaluation's metrics "
            f"({', '.join(metrics)}), got {stage.score!r}"
        )


ATTEMPTS = 20
"""How often a reader may find that the checkpoint it chose is gone; the writer is not that fast."""


def _restored(saved: Checkpoints, checkpoint: str, like: State) -> tuple[int, State]:
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


def _checkpoints(folder: RunFolder, stage: Stage) -> Checkpoints:
    return Checkpoints(folder.checkpoints / stage.name, scored=stage.score is not None)


def _choose(saved: Checkpoints, checkpoint: str) -> int:
    step = {"best": saved.best, "latest": saved.latest}.get(checkpoint, lambda: checkpoint)()
    if step is None:
        raise CheckpointError(f"checkpoints {saved.folder}: there are none yet")
    if not str(step).isdigit() or int(step) not in saved.steps():
        raise CheckpointError(
            f"checkpoint {checkpoint!r}: expected best, latest or one of {saved.steps()}"
        )
    return int(step)
