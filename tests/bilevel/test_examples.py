"""The examples that users start from do what they say."""

from __future__ import annotations

import doctest
import runpy
from pathlib import Path

import pytest

from jaxmethods import bilevel

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_the_docstring_s_example_runs():
    failed, attempted = doctest.testmod(bilevel)
    assert attempted > 5
    assert not failed


@pytest.mark.slow
def test_reweighting_finds_wrong_labels_and_gains_by_it():
    pytest.importorskip("sklearn")
    result = runpy.run_path(str(EXAMPLES / "reweighting.py"))["main"]()
    right, wrong = result.weights[~result.wrong], result.weights[result.wrong]
    assert wrong.mean() < 0.5 * right.mean()
    assert result.accuracy_after > result.accuracy_before + 0.03
