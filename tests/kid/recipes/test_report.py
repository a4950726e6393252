"""What a table says: of how many questions, with which errors, and whether the teacher is one."""

from __future__ import annotations

import numpy as np

from jaxmethods.kid.recipes.judging import Exposure, Judged
from jaxmethods.kid.recipes.report import precondition, scores
from jaxmethods.kid.recipes.verdicts import Verdicts


def verdicts(right, number):
    """One seed's, the first `right` of them right."""
    execution = np.arange(number)[None] < right
    wrong = np.zeros_like(execution)
    return Verdicts(execution, execution, wrong, ~wrong, (("",) * number,))


JUDGED = Judged(
    titles=("teacher", "sft"),
    splits=("held_out", "train"),
    verdicts={
        "teacher": {"held_out": verdicts(2, 5), "train": verdicts(9, 10)},
        "sft": {"held_out": verdicts(1, 5), "train": verdicts(5, 10)},
    },
    exposure={"sft": Exposure(np.asarray([[1.0, 12.0]]), np.asarray([3.0]), 7)},
    voted={},
    fuzzed={},
    frequent={"held_out": 0.2, "train": 0.1},
    sqlite="3",
    databases={},
)


def test_a_teacher_knows_what_it_has_learned_first():
    first, second = precondition(JUDGED, "train").split("\n\n")
    assert "the teacher answers 90.0 (10.0; n 10) % of the questions that it has learned" in first
    assert first.endswith("(expected: at least 80). It holds.")
    assert "40.0 (24.5; n 5) % of held_out right" in second
    assert "does not hold" in second
    assert precondition(JUDGED, "other") == second


def test_every_number_has_its_questions_and_its_error():
    head, _, teacher, student, frequent, *_, note = scores(JUDGED, []).split("\n")
    assert head.startswith("| model | EX held_out (n 5) | EX train (n 10) | EM held_out |")
    assert teacher.startswith("| teacher | 40.0 (24.5) | 90.0 (10.0) | 40.0 (24.5) | 0.0 (0.0) |")
    assert "| 12.0 (3.0) |" in student
    assert frequent.startswith("| most frequent query | 20.0 (20.0) | 10.0 (10.0) |")
    assert "a student's own responses (n 7)." in note
