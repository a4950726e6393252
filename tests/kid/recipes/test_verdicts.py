"""Answers become queries: which beam is taken, and which queries are right on changed databases."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmethods.kid.recipes.verdicts import best_beams, judge_answers, judge_fuzzed, judge_queries
from tests.kid.recipes.test_material import texts_of
from tests.kid.recipes.tiny import spider


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return texts_of(spider(tmp_path_factory.mktemp("verdicts") / "data"))


def written(texts, queries, length=40):
    """Tokens and lengths of queries in any nesting, with their end."""
    flat = np.ravel(queries).tolist()
    tokens = np.zeros((len(flat), length), np.int32)
    lengths = np.zeros(len(flat), np.int32)
    for row, ids in enumerate(texts.tokenizer.encode(flat)):
        own = [*ids, texts.tokenizer.end]
        tokens[row, : len(own)], lengths[row] = own, len(own)
    shape = np.shape(queries)
    return tokens.reshape(*shape, length), lengths.reshape(shape)


def test_the_first_beam_that_can_be_planned_is_the_answer(texts):
    gold, broken = "SELECT count(*) FROM player", "SELECT nothing FROM player"
    other = "SELECT name FROM team"
    examples = texts.judged["dev"].examples
    found = best_beams(
        texts, examples, written(texts, [[[broken, gold, other], [broken, broken, broken]]])
    )
    verdicts = judge_answers(texts, examples, found)
    assert verdicts.texts == ((gold, broken),)
    assert verdicts.execution.tolist() == [[True, False]]
    assert verdicts.ended.all()


def test_what_is_right_by_chance_is_wrong_on_changed_databases(texts):
    """A constant has the result on the database as it is; the gold query has it everywhere."""
    examples = texts.judged["dev"].examples
    gold = examples[0].query
    result = texts.questions.executor().execute(examples[0].database, gold).rows[0][0]
    queries = [[gold, f"SELECT {result}"], ["SELECT 1 FROM nothing", gold]]
    verdicts = judge_queries(texts, examples, queries, np.ones((2, 2), bool))
    assert verdicts.execution.tolist() == [[True, True], [False, True]]
    found = judge_fuzzed(texts, examples, {"model": verdicts}, count=8, seed=0)
    assert found["model"].tolist() == [[True, False], [False, True]]
