"""What compiled steps send: as much for any number of devices, and the page says what was read."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import kid, scaling, scaling_programs
from benchmarks.compiled import work_of
from benchmarks.pages import part

ROWS = json.loads(scaling.RESULTS.read_text())["rows"]
DECODER = kid.small(16, 1, vocabulary=256)
TINY = kid.Sizes(DECODER, DECODER, prompt=4, response=512)


def test_products_of_a_loop_count_as_often_as_it_turns():
    weights, x = jnp.zeros((5, 8, 8)), jnp.zeros((4, 8))
    step = jax.jit(lambda w, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0])
    work = work_of(step.lower(weights, x).compile().as_text())
    assert work.flops == 5 * 2 * 4 * 8 * 8
    assert work.sent == 0
    assert work.collectives == 0


def test_a_decoder_sends_its_gradient_and_nothing_that_grows_with_the_rows():
    """Chunks of the head's tokens have places of all rows, so that no states are gathered."""
    program = scaling_programs.language("sft", TINY, rows=2)
    work = work_of(scaling_programs.compiled(program, 8).as_text())
    whole, head = kid.parameters(DECODER), DECODER.vocab_size * DECODER.width
    chunks = 2 * TINY.response // kid.COMPARED["sft"].loss.logit_chunk
    assert chunks == 2
    ring = 2 * 4 * (whole + chunks * head) * 7 / 8  # the head's is added up after each chunk
    assert work.sent == pytest.approx(ring, rel=0.01)


@pytest.mark.slow
def test_tasks_that_train_side_by_side_send_their_mean_loss_alone():
    program = scaling_programs.tasks_side_by_side(tasks=1, rows=16, columns=3)
    work = work_of(scaling_programs.compiled(program, 8).as_text())
    assert 0 < work.sent < 100


def test_the_page_has_the_tables_of_the_committed_rows():
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert part(page, "steps") == scaling.table(ROWS)
    assert part(page, "check") == scaling.check(ROWS)


def test_programs_that_fit_the_rule_are_predicted_to_a_hundredth():
    """The programs for 1 and 2 devices say what those for 8 contain."""
    for name in ("decoder", "kid", "mae", "vqcd"):
        eight = ROWS[name]["devices"]["8"]
        for field in ("flops", "traffic", "sent"):
            assert eight["predicted"][field] == pytest.approx(eight[field], rel=0.01), name
