"""`method: speech_probe` on the command line: what a Whisper's frozen encoder knows.

Every clip of two manifests is heard once (`heard`) and kept; linear probes read a label from
summaries of the frames (`probes`), of clips that were not learned from and of groups (speakers)
that are left out. With `answerer` a small speech-text model learns to answer with the label, on all
groups and without each of them (`answered`).
"""

from __future__ import annotations

from functools import partial

from jaxmethods.lsm.config import ProbeRun as Run
from jaxmethods.lsm.recipes.probe import answering, linear, material
from jaxmethods.lsm.recipes.probe.diagnosis import diagnosed
from jaxmethods.lsm.recipes.probe.report import report
from jaxmethods.stages import Recipe, Stage

__all__ = ["Run", "recipe"]


def recipe(run: Run) -> Recipe:
    """All stages that a config asks for.

    Raises:
        HubError: the model can't be used.
        DataError: a manifest that can't be read, a recording that is missing.
        MissingExtraError: soundfile or soxr is needed and not installed.
    """
    clips = material.read_clips(run)
    if not run.skip_unreadable:
        material.check_files(clips)
    encoder = material.read_encoder(run.model)  # says what is wrong before there is a run folder
    stages: list[Stage] = [material.heard_stage(run, clips), linear.probes_stage(run)]
    headline = [f"{linear.STAGE}/{pool}_accuracy" for pool in material.POOLS]
    reads = [material.STAGE, linear.STAGE]
    if run.group:
        headline.insert(1, f"{linear.STAGE}/{material.OWN}_left_out")
    if run.answerer is not None:
        stages += answering.stages(run, run.answerer, clips, encoder.config.encoder)
        headline.append(f"{answering.STAGE}/accuracy")
        reads.append(answering.STAGE)
    return Recipe(
        stages,
        partial(report, run),
        reads,
        headline,
        diagnosable=partial(diagnosed, run),
    )
