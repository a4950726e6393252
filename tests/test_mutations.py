"""Every formula's test fails when the formula is wrong; see `tests/mutations.py`."""

from __future__ import annotations

import os

import pytest

from tests import mutations

MUTATIONS = mutations.all_mutations()
JUDGED = MUTATIONS if os.environ.get("JAXMETHODS_ALL_MUTATIONS") else MUTATIONS[::60]
"""All of them take an hour."""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_line_to_mutate_is_there_once(mutation):
    """So that a change of the code doesn't leave a formula unwatched."""
    mutations.mutate(mutation)


def test_at_most_one_of_thirty_is_excused():
    excused = [mutation for mutation in MUTATIONS if mutation.excuse]
    assert len(excused) <= len(MUTATIONS) / 30


@pytest.mark.slow
@pytest.mark.parametrize("mutation", JUDGED, ids=str)
def test_its_tests_notice(mutation):
    kind, detail = mutations.judge(mutation)
    assert (kind == "killed") != bool(mutation.excuse), f"{kind} {detail}"
