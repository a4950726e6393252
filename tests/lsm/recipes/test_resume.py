"""A run that dies while its language model writes, and is stopped while a student learns, ends in
the bits of a whole one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmethods.lsm.config import SpeechTextRun
from jaxmethods.lsm.recipes.speech_text import recipe
from jaxmethods.lsm.recipes.writing import GENERATED
from jaxmethods.records.run_folder import RunFolder
from jaxmethods.stages import Recipe
from jaxmethods.training import runner
from jaxmethods.training.stopping import Interrupted
from tests.lsm.recipes.test_speech_text import CONFIG, SMALL
from tests.training.test_loop import StopAt

STUDENT = {
    "title": "both",
    "transcripts": 1,
    "generated": {"intent": 1, "sentiment": 1},
    "tune": {"steps": 4, "warmup": 1, "batch": 2, "tokens": 6},
}
SHORT = CONFIG | {
    "seeds": 1,
    "listener": SMALL | {"layers": 1, "n_mels": 8, "steps": 1},
    "writer": SMALL | {"layers": 1, "steps": 1},
    "students": [STUDENT],
    "new_tokens": 12,
    "training": {"log_every": 1, "evaluate_every": 4, "checkpoint_every": 1},
}
KILLED = """
import os, signal, sys
from jaxmethods.lsm.recipes import writing
from tests import programs
from tests.lsm.recipes import test_resume

programs.compile_fast()
prompts, calls = writing.text_prompts, []

def prompts_of_one_kind(*given):
    calls.append(given)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return prompts(*given)

writing.text_prompts = prompts_of_one_kind
test_resume.go(sys.argv[1])
"""


def go(folder, **settings):
    """Everything but the judging of answers, which learns nothing."""
    run = SpeechTextRun.model_validate(SHORT)
    stages = [stage for stage in recipe(run).stages if stage.name != "judged"]
    return runner.run(Recipe(stages), run, RunFolder(Path(folder)), **settings)


class StopTheStudent(StopAt):
    """Other stages have a step of the same number."""

    def row(self, row):
        if row.get("stage") == "both":
            super().row(row)


def bits(tree):
    return [np.asarray(jax.device_get(leaf)) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_a_killed_and_a_stopped_run_end_in_the_bits_of_a_whole_one(tmp_path):
    whole = go(tmp_path / "whole")
    folder = tmp_path / "killed"
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    written = folder / "parts" / GENERATED
    assert [file.name for file in written.iterdir()] == ["intent.npz"]
    before = (written / "intent.npz").stat().st_mtime_ns
    with pytest.raises(Interrupted, match="saved at step 2 of 4"):
        go(folder, resume=True, progress=StopTheStudent(2, signal.SIGTERM))
    resumed = go(folder, resume=True)
    assert (written / "intent.npz").stat().st_mtime_ns == before, "it was not written again"
    assert resumed[GENERATED]["intent"].texts == whole[GENERATED]["intent"].texts
    assert resumed[GENERATED]["sentiment"].texts == whole[GENERATED]["sentiment"].texts
    for one, other in zip(bits(whole["both"]), bits(resumed["both"]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(whole["both"].tokens[0]) == 24
