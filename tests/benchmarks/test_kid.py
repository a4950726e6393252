"""Both sides of the benchmark of a distillation step do the same work: equal losses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from benchmarks import kid as bench
from benchmarks.harness import Settings
from jaxmethods.kid.loss import kid_loss
from jaxmethods.kid.model import of_decoder
from jaxmethods.models import decoder

SIZES = bench.Sizes(bench.small(16, 1, 32), bench.small(16, 1, 32), 2, 6, 4)


@pytest.mark.slow
def test_the_loss_is_that_of_pytorch():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    own, other = (
        jax.jit(lambda key: decoder.init_params(key, SIZES.student))(jax.random.key(seed))
        for seed in (0, 1)
    )
    model = of_decoder(SIZES.student)
    loss = jax.jit(
        lambda own, other: kid_loss(
            own,
            other,
            bench.random_examples(SIZES),
            jax.random.key(0),
            model,
            model,
            bench.COMPARED["rkd"].loss,
        )[0]
    )(own, other)
    np.testing.assert_allclose(loss, bench.torch_step(SIZES, own, other, "cpu")(), rtol=1e-5)


@pytest.mark.slow
def test_rows_say_how_often_a_step_is_that_of_the_others():
    rows = list(bench.steps(Settings(3, 0.1, 1), SIZES, ("sft", "rkd_cached")))
    assert [row.name for row in rows] == ["kid/sft", "kid/rkd_cached"]
    assert rows[0].note == "1.00x sft"
    assert rows[1].work == 2
    assert bench.parameters(SIZES.student) == sum(
        leaf.size for leaf in jax.tree.leaves(decoder.init_params(jax.random.key(0), SIZES.student))
    )
