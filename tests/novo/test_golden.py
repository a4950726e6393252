"""The published code's numbers: from token ids to norms, votes and predictions.

Files are found by the ends of their names and every size is read from the arrays; tolerances and
the meaning of the arrays: tests/golden/README.md.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import decoder
from jaxmethods.novo import heads
from jaxmethods.novo.score import score
from tests.golden_files import FOLDER, read

PIPELINES = sorted((FOLDER / "novo").glob("*_pipeline.npz"))
SELECTIONS = sorted((FOLDER / "novo").glob("selection*.npz"))
assert PIPELINES
assert SELECTIONS
MODES = ("naive", "packed", "tree")


@functools.cache
def load(file):
    return decoder.load(file.parent / file.stem.removesuffix("_pipeline"))


def sequences_of(golden):
    return [
        [ids[c, : lengths[c]].tolist() for c in range(n)]
        for ids, lengths, n in zip(
            golden["input_ids"], golden["lengths"], golden["n_choices"], strict=True
        )
    ]


def there(golden):
    return np.arange(golden["head_norms"].shape[1]) < golden["n_choices"][:, None]


def check_votes(golden, norms, q, prefix, rule="code"):
    mask, n = there(golden), int(golden["n_discovery"])
    norms = jnp.where(mask[..., None], norms, 0)  # what is there must not matter
    voters = heads.fit(norms[:n], mask[:n], golden["labels"][:n], q, rule=rule)
    votes, predictions = jax.vmap(heads.vote, (0, 0, None))(norms, mask, voters)
    np.testing.assert_array_equal(votes, golden[f"{prefix}votes"])
    np.testing.assert_array_equal(predictions, golden[f"{prefix}predictions"])
    return heads.heads_to_indices(voters)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.stem)
def test_from_token_ids_to_predictions(file, mode):
    golden, (config, params) = read(file), load(file)
    scores = score(params, config, sequences_of(golden), mode=mode)
    mask, n = there(golden), int(golden["n_discovery"])
    np.testing.assert_array_equal(scores.mask, mask)
    np.testing.assert_allclose(scores.norms[mask], golden["head_norms"][mask], rtol=2e-5, atol=1e-5)
    counts = heads.correct_counts(scores.norms[:n], mask[:n], golden["labels"][:n])
    np.testing.assert_array_equal(counts, golden["correct_counts"])
    largest, smallest = check_votes(golden, scores.norms, float(golden["quantile"]), "")
    np.testing.assert_array_equal(largest, golden["heads_max"])
    np.testing.assert_array_equal(smallest, golden["heads_min"])
    right = golden["predictions"][n:] == golden["labels"][n:]
    assert right.mean() == golden["accuracy_eval"]


@pytest.mark.parametrize("file", SELECTIONS, ids=lambda file: file.stem)
def test_selection_and_votes_under_many_ties(file):
    golden = read(file)
    mask, n = there(golden), int(golden["n_discovery"])
    norms = np.where(mask[..., None], golden["head_norms"], 0)
    counts = heads.correct_counts(norms[:n], mask[:n], golden["labels"][:n])
    np.testing.assert_array_equal(counts, golden["correct_counts"])
    for q in golden["quantiles"]:
        prefix = f"q{round(100 * q):03d}_"
        largest, smallest = check_votes(golden, norms, float(q), prefix)
        np.testing.assert_array_equal(largest, golden[f"{prefix}heads_max"])
        np.testing.assert_array_equal(smallest, golden[f"{prefix}heads_min"])


@pytest.mark.parametrize("file", SELECTIONS, ids=lambda file: file.stem)
def test_the_rule_of_the_paper(file):
    golden = read(file)
    norms = np.where(there(golden)[..., None], golden["head_norms"], 0)
    largest, smallest = check_votes(golden, norms, 0.85, "paper_p85_", rule="paper")
    index = golden["paper_p85_index_vector"]
    by_smallest = golden["paper_p85_indicators"].astype(bool)
    if by_smallest.shape != index.shape:
        by_smallest = by_smallest[index]
    np.testing.assert_array_equal(largest, index[~by_smallest])
    np.testing.assert_array_equal(smallest, index[by_smallest])
