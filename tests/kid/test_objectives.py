"""Objectives as settings: what their names mean, and where two of them are the same."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from jaxmethods.kid.config import DistillRun, StudentConfig
from jaxmethods.kid.method import Data, distiller
from jaxmethods.kid.objectives import OBJECTIVES
from jaxmethods.models import decoder
from tests.kid import small
from tests.kid.small import MODEL, STUDENT, TEACHER_PARAMS, make_batch


def after_two_steps(student):
    method = distiller(
        STUDENT,
        MODEL,
        optax.adam(0.02),
        student.loss,
        rows=2,
        init=lambda key: decoder.init_params(key, small.CONFIG),
        source=student.source,
    )
    data = Data(make_batch(), TEACHER_PARAMS)

    def train(key):
        state = method.init(key, data)
        return jax.lax.fori_loop(0, 2, lambda _, state: method.step(state, data)[0], state)

    return jax.tree.leaves(jax.jit(train)(jax.random.key(0)).params)


def test_kid_without_masks_is_reverse_kl_and_likelihood_bit_for_bit():
    kid = StudentConfig(objective="kid", loss={"imperfect": {"alpha": 0.0}})
    rkd = StudentConfig(objective="rkd")
    assert kid.loss != rkd.loss
    for one, other in zip(after_two_steps(kid), after_two_steps(rkd), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_objective_says_what_is_not_given():
    akl = StudentConfig(objective="akl", loss={"divergence": {"head_mass": 0.3}})
    assert (akl.loss.divergence.name, akl.loss.divergence.head_mass) == ("adaptive_kl", 0.3)
    assert akl.loss.imperfect.rewrite == "vanilla"
    assert StudentConfig.model_validate("gkd").source.student == 1
    assert StudentConfig.model_validate("gkd").loss.mle_weight == 0
    assert StudentConfig(objective="distillm").source.replay is not None
    for name in OBJECTIVES:
        config = StudentConfig(objective=name)
        assert StudentConfig.model_validate(config.model_dump()) == config, "as it is written"
        on_gold = config.source == StudentConfig().source
        assert config.loss.mle_weight == (1 if on_gold or name == "seqkd" else 0)


def test_students_have_names_of_their_own():
    with pytest.raises(ValueError, match="names that differ"):
        DistillRun(method="kid", students=("kid", "kid"))
    with pytest.raises(ValueError, match="got 'teacher'"):
        DistillRun(method="kid", students=({"objective": "kid", "name": "teacher"},))
    with pytest.raises(ValueError, match="a student before 'kid', got 'sft'"):
        DistillRun(method="kid", students=({"objective": "kid", "begin": "sft"}, "sft"))
    both = ("kid", {"objective": "kid", "name": "clean", "loss": {"mle_input": "clean"}})
    run = DistillRun(method="kid", students=both)
    assert [student.title for student in run.students] == ["kid", "clean"]
