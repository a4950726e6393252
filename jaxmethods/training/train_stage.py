"""A stage that trains, on its way from its newest checkpoint to its last step and its result.

The host looks up only between chunks: it fetches the chunk's metrics once, checks that they are
finite, evaluates and saves when due, and stops cleanly when a signal asked for it.
"""

from __future__ import annotations

import signal
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmethods.config import RunConfig, loop_of, seeds_of
from jaxmethods.devices import processes as distributed
from jaxmethods.devices.sharding import Placer, put, shardings
from jaxmethods.errors import UserError
from jaxmethods.layout import seed_axes
from jaxmethods.method import Batch, State
from jaxmethods.records.record import Record
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.stages import Results, Train
from jaxmethods.training.checkpoints import Checkpoints
from jaxmethods.training.judging import HostMetrics, Judge, StageError
from jaxmethods.training.loop import abstract_state, compile_chunk, init_state, seed_keys
from jaxmethods.training.stopping import Interrupted, Stop


class DivergedError(UserError):
    """A metric became NaN or infinite."""

    code = 1


class Trained:
    """Where a training stage's checkpoints and its result are kept."""

    def __init__(self, folder: RunFolder, stage: Train):
        scored = stage.evaluation is not None and stage.evaluation.score is not None
        self.stage = stage
        self.checkpoints = Checkpoints(folder.checkpoints / stage.name, scored)
        self.results = Checkpoints(folder.results / stage.name)

    def reached(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        return self.checkpoints.latest() or 0

    def close(self) -> None:
        self.checkpoints.close()
        self.results.close()

    def result(self, state: State, batch: Batch, keep: bool = True) -> Any:
        """What the stage hands on from its last state [seeds]: computed once, then kept."""
        if self.stage.result is None:
            return state
        axes = (0, seed_axes(batch, self.stage.layout.per_seed))
        program = jax.jit(jax.vmap(self.stage.result, axes)).lower(state, batch).compile()
        if self.results.latest() == self.stage.steps:
            like = jax.tree.map(
                lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
                program.out_info,
                program.output_shardings,
            )
            return distributed.together(lambda: self.results.restore(self.stage.steps, like))
        result = program(state, batch)
        if keep:
            self.results.save(self.stage.steps, result, None)
        return result


class TrainRun:
    """One run of a stage."""

    def __init__(self, kept: Trained, config: RunConfig, mesh: Mesh, record: Record, stop: Stop):
        self.stage = kept.stage
        self.kept = kept
        self.loop = loop_of(config)
        self.seeds = seeds_of(config)
        self.mesh = mesh
        self.record = record
        self.stop = stop
        self.whole = NamedSharding(mesh, PartitionSpec())
        keys = seed_keys(config, None if self.stage.main else self.stage.name)
        self.init_keys, self.evaluation_keys = put(keys, self.whole)

    def to_the_end(self, results: Results) -> Any:
        """The stage's result, from those of the stages before it."""
        batch = Placer(self.mesh, self.seeds)(self.stage.data(results), self.stage.layout)
        step, state = self._begin(batch)
        judge = Judge(self.stage, batch, self.whole)
        self._make_up(judge, step, state, batch)
        if step < self.stage.steps:
            state = self._train(judge, step, state, batch)
        elif not self.stage.steps:  # readers look for its state all the same
            self.kept.checkpoints.save(step, state, None)
        return self.kept.result(state, batch)

    def _make_up(self, judge: Judge, step: int, state: State, batch: Batch) -> None:
        """The evaluation of the step that is gone on from, if it failed when that was saved.

        Without it the last number of a finished stage would be of an earlier state.
        """
        if not step or self.stage.evaluation is None:
            return
        # Only the writer has read what is in the record.
        there = (self.stage.name, step) in self.record.judged or not distributed.is_writer()
        if not distributed.agree(not there):
            return
        evaluation = self._evaluate(judge, step, state, batch)
        if evaluation:
            self.record.write(self.stage.name, step, self._named(evaluation))
            self.kept.checkpoints.rescore(step, self._score(evaluation))

    def _train(self, judge: Judge, step: int, state: State, batch: Batch) -> State:
        judge.check(state, batch, self.evaluation_keys)
        self.record.progress.stage(self.stage.name, step, self.stage.steps)
        axes = seed_axes(batch, self.stage.layout.per_seed)
        self.record.progress.compiling()
        chunk = compile_chunk(self.stage.method, state, batch, self.loop.log_every, axes)
        self.record.progress.compiled(chunk.compile_seconds)
        while step < self.stage.steps:
            signal_number = self.stop.agreed()
            if signal_number is not None:
                self._save_and_stop(step, state, signal_number)
            # Chunks end at multiples of log_every, wherever the run was resumed.
            count = min(self.loop.log_every - step % self.loop.log_every, self.stage.steps - step)
            start = time.perf_counter()
            state, buffer = chunk.run(state, batch, put(np.int32(count), self.whole))
            metrics = {k: v[:count] for k, v in jax.device_get(buffer).items()}
            seconds = time.perf_counter() - start
            self._check_finite(step, metrics)
            step += count
            row: HostMetrics = {f"train/{k}": _mean(v) for k, v in metrics.items()}
            row["steps_per_second"] = np.asarray(count / seconds)
            try:
                evaluation = self._evaluate(judge, step, state, batch)
            except (StageError, distributed.ElsewhereError) as error:
                # What was trained is not lost with what could not be said of it.
                self.record.write(self.stage.name, step, row)
                self.kept.checkpoints.save(step, state, None)
                raise StageError(
                    f"{error}; the state is saved at step {step}, mend it and go on with --resume"
                ) from error
            self.record.write(self.stage.name, step, row | self._named(evaluation))
            if self._due(step, self.loop.checkpoint_every):
                self.kept.checkpoints.save(step, state, self._score(evaluation))
        return state

    def _begin(self, batch: Batch) -> tuple[int, State]:
        def place(state: State) -> Any:
            return shardings(state, self.stage.layout.state, self.seeds, self.mesh)

        axes = seed_axes(batch, self.stage.layout.per_seed)
        given = self.stage.method, self.init_keys, batch, place, axes
        step = self.kept.checkpoints.latest()
        if step is None:
            return 0, init_state(*given)
        like = abstract_state(*given)
        return step, distributed.together(lambda: self.kept.checkpoints.restore(step, like))

    def _due(self, step: int, every: int) -> bool:
        """True when a multiple of `every` lies in the chunk that ends here, and at the end."""
        chunk_start = (step - 1) // self.loop.log_every * self.loop.log_every
        return step // every > chunk_start // every or step == self.stage.steps

    def _evaluate(self, judge: Judge, step: int, state: State, batch: Batch) -> HostMetrics:
        if not self._due(step, self.loop.evaluate_every):
            return {}
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.evaluation_keys, step)
        return distributed.together(lambda: judge.metrics(state, batch, keys))

    def _named(self, evaluation: HostMetrics) -> HostMetrics:
        """Metrics by their names in the record."""
        along = self.stage.evaluation.along if self.stage.evaluation else ()
        return {
            f"{'curve' if name in along else 'evaluate'}/{name}": value
            for name, value in evaluation.items()
        }

    def _score(self, evaluation: HostMetrics) -> float | None:
        """The mean over seeds; it isn't finite where one seed's isn't, and then counts as none."""
        score = self.stage.evaluation and self.stage.evaluation.score
        return float(_mean(evaluation[score])) if evaluation and score else None

    def _check_finite(self, step: int, metrics: HostMetrics) -> None:
        wrong = []
        for name, values in metrics.items():
            for index, seed in np.argwhere(~np.isfinite(values.reshape(len(values), -1))):
                wrong.append((step + int(index) + 1, name, int(seed), values[index].ravel()[seed]))
        if not wrong:
            return
        at, name, seed, value = min(wrong, key=lambda w: w[0])
        of_seed = f" of seed {seed}" if self.seeds > 1 else ""
        last = self.kept.checkpoints.latest()
        good = (
            "there is no checkpoint"
            if last is None
            else (f"the last good checkpoint is {self.kept.checkpoints.path(last)}")
        )
        raise DivergedError(
            f"stage {self.stage.name}, step {at}: metric {name!r}{of_seed} is {value}; {good}"
        )

    def _save_and_stop(self, step: int, state: State, number: int) -> None:
        name = signal.Signals(number).name
        if step == 0:
            raise Interrupted(f"{name}: stopped before the first step; nothing to save", number)
        self.kept.checkpoints.save(step, state, None)
        raise Interrupted(
            f"{name}: stopped and saved at step {step} of {self.stage.steps} "
            f"(stage {self.stage.name}); go on with --resume",
            number,
        )


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the first axis; a sum of bfloat16 numbers stops growing at 256."""
    half = values.dtype.itemsize < 4 and jnp.issubdtype(values.dtype, jnp.floating)
    return np.asarray(np.mean(values, 0, dtype=np.float32 if half else None))
