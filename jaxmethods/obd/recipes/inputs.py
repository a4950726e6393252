"""What a distillation reads or generates."""

from __future__ import annotations

from functools import cache

import jax

from jaxmethods.data.generated import mixed_quality
from jaxmethods.data.offline import FlatDataset, episode_ends, q_learning_rows, read_offline
from jaxmethods.envs.control.episodes import CONTROLLERS, make_control
from jaxmethods.numerics.keys import named
from jaxmethods.obd.config import DistillRun as Run
from jaxmethods.obd.evaluate import check_environment, check_spaces
from jaxmethods.obd.recipes import distilled_files as distilled
from jaxmethods.obd.recipes.teacher_files import check_teacher, load_teacher
from jaxmethods.obd.types import Source
from jaxmethods.offline_rl.dataset import offline_data
from jaxmethods.offline_rl.transitions import Transitions, make_transitions, whole_returns
from jaxmethods.offline_rl.types import Norm, OfflineData


class Inputs:
    """What a run reads or generates, once, and checked against everything that will use it."""

    def __init__(self, run: Run):
        check_environment(run.evaluation)
        self.run = run
        self.offline = cache(self._offline)
        self.teacher = None if run.teacher.path is None else load_teacher(run.teacher.path)
        self._flat = None if run.data.path is None else read_offline(run.data.path)
        # As they are now: at the end of the run they may have moved.
        self.files = {
            "source": distilled.describe_file(run.data.path),
            "teacher": distilled.describe_file(run.teacher.path),
        }
        self._check()

    def flat(self) -> FlatDataset:
        if self._flat is None:
            env = make_control(str(self.run.data.generate))
            play = CONTROLLERS[str(self.run.data.generate)](env)
            key = named(jax.random.key(self.run.data.seed), "data")
            self._flat = mixed_quality(env, play, key, self.run.data.episodes)
        return self._flat

    def transitions(self) -> Transitions:
        learner = getattr(self.run.teacher, self.run.teacher.learn or "calql")
        return make_transitions(self.flat(), self.offline()[1], learner.discount)

    def returns(self) -> jax.Array:
        """[L]: the return of the episode that each row of the offline data belongs to."""
        flat = self.flat()
        whole = whole_returns(flat.rewards, episode_ends(flat))
        return whole[q_learning_rows(flat).index]

    def _offline(self) -> tuple[OfflineData, Norm]:
        return offline_data(self.flat())

    def _check(self) -> None:
        data, norm = self.offline()
        if self.run.teacher.learn is not None or self.run.comparison is not None:
            episode_ends(self.flat())  # returns will be needed, which rows in no order don't have
        check_teacher(Source(data, norm, self.teacher))
        sizes = data.states.shape[1], data.actions.shape[1]
        check_spaces(self.run.evaluation.environment, *sizes)
        config = self.run.distillation
        for name in ("n_syn", "batch"):
            if getattr(config, name) > len(data.states):
                raise ValueError(
                    f"distillation.{name}: expected at most the {len(data.states)} rows of the "
                    f"data, got {getattr(config, name)}"
                )
