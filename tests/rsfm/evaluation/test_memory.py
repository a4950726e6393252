"""100,000 features of 768 numbers are judged in less than 2 GB, by what XLA says that it needs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxmethods.numerics.linear_probe import probe_lbfgs
from jaxmethods.rsfm.evaluation.neighbors import neighbor_scores
from jaxmethods.rsfm.evaluation.protocols import LAMS

NUMBER, WIDTH, QUERIES, CLASSES = 100_000, 768, 10_000, 10
FEATURES = jax.ShapeDtypeStruct((NUMBER, WIDTH), jnp.float32)
LABELS = jax.ShapeDtypeStruct((NUMBER,), jnp.int32)
MOST = 2e9


def needed(program, *arguments, **settings):
    """Bytes of arguments, results and everything between."""
    found = program.lower(*arguments, **settings).compile().memory_analysis()
    if found is None:
        pytest.skip("this backend does not say")
    sizes = (found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes)
    assert sizes[0] >= 4 * NUMBER * WIDTH
    return sum(sizes)


def test_neighbors_never_hold_all_similarities():
    queries = jax.ShapeDtypeStruct((QUERIES, WIDTH), jnp.float32)
    own = needed(neighbor_scores, FEATURES, LABELS, queries, classes=CLASSES, chunk=1024)
    assert own < MOST
    assert own < 4 * NUMBER * QUERIES  # the matrix of all of them alone


@pytest.mark.slow
def test_a_whole_path_of_penalties_is_searched_at_once():
    lams = jax.ShapeDtypeStruct((len(LAMS),), jnp.float32)
    assert needed(probe_lbfgs, FEATURES, LABELS, lams, classes=CLASSES) < MOST
