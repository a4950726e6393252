"""Examples of the documentation do what their first lines say, in this process."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


def main(name: str):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_first_line_of_an_example_is_its_command(file):
    text = file.read_text()
    assert text.startswith(f'"""python docs/examples/{file.name}')
    assert len((ast.get_docstring(ast.parse(text)) or "").split()) > 20


@pytest.mark.slow
def test_a_team_learns_in_an_environment_of_its_own():
    first, last = main("own_environment")(updates=40)
    assert first < 0.5
    assert last > first + 0.1


@pytest.mark.slow
def test_four_learned_pairs_teach_more_than_four_rows():
    before, after = main("distil_dataset")()
    assert after < before


@pytest.mark.slow
def test_a_coefficient_found_by_its_gradient_is_the_best_of_the_grid():
    best, found = main("merge_in_jit")()
    assert abs(best - found) <= 0.1


@pytest.mark.slow
def test_heads_that_read_repetition_are_found():
    assert main("score_questions")() > 0.5


@pytest.mark.slow
def test_a_second_task_leaves_the_firsts_weights():
    assert main("plan_across_tasks")()


@pytest.mark.slow
def test_a_student_comes_near_its_teacher_in_the_users_divergence():
    first, last = main("own_divergence")()
    assert last < 0.7 * first


@pytest.mark.slow
def test_transcripts_and_answers_are_tokens_of_their_models():
    said, answered = main("transcribe_and_follow")()
    assert said.shape == answered.shape == (2, 4)
    assert ((said >= 0) & (said < 20) & (answered >= 0) & (answered < 20)).all()


@pytest.mark.slow
def test_probes_judge_both_features_above_chance():
    found = main("probe_encoder")()
    assert len(found) == 2
    assert all(0.1 < value <= 1 for value in found.values())


@pytest.mark.slow
def test_a_minimum_is_diagnosed_with_its_errors():
    found = main("diagnose_model")()
    assert 0 < found["error"] < found["trace"]
    assert 0 < found["top"] < found["trace"] + 4 * found["error"]


@pytest.mark.slow
def test_merged_models_are_diagnosed_in_one_program():
    losses, traces = main("diagnose_a_merge")()
    assert losses.shape == traces.shape == (11,)
    assert losses[5] < losses[0]


@pytest.mark.slow
def test_a_small_decoder_learns_to_answer_about_text():
    assert main("teach_decoder")(steps=100) > 0.5
