"""The judge's benchmark asks what it says it asks."""

from __future__ import annotations

from benchmarks.judge import ours, write_questions


def test_gold_predictions_are_right_and_others_may_be(tmp_path):
    examples, predictions = write_questions(tmp_path, None, 30)
    assert len({one.database for one in examples}) == 15
    found = ours(tmp_path)
    gold = [one.query == query for one, query in zip(examples, predictions, strict=True)]
    assert 5 < sum(gold) < 25
    for name in ("execution", "exact"):
        assert all(right for right, same in zip(found[name], gold, strict=True) if same), name
        assert not all(found[name])
