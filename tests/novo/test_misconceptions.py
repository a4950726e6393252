"""The world of facts and myths says what it promises, and one step of learning is one."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmethods import cli
from jaxmethods.novo import misconceptions as world_of
from jaxmethods.novo.config import LearnerConfig, World
from jaxmethods.novo.recipes.misconceptions import Run, recipe
from tests.same_numbers import check_same_numbers

CONFIGS = Path(__file__).parents[2] / "configs" / "novo"
WORLD = World(entities=5, relations=2, values=6)


def test_myths_are_more_frequent_than_the_truth_and_verdicts_are_right():
    facts = world_of.draw_facts(jax.random.key(0), WORLD)
    assert (facts.true != facts.myth).all()
    words = np.asarray(world_of.draw_sentences(jax.random.key(1), facts, WORLD, 4000))
    assert words.max() < world_of.vocabulary(WORLD)
    entity, relation = words[:, 2] - 7, words[:, 3] - 12
    value = words[:, 5] - 14 - relation * WORLD.values
    assert ((value >= 0) & (value < WORLD.values)).all()
    true = value == np.asarray(facts.true)[entity, relation]
    myth = value == np.asarray(facts.myth)[entity, relation]
    np.testing.assert_array_equal(words[:, -1] == world_of.TRUE, true)
    # Drawn at random, either is met once in six times too.
    np.testing.assert_allclose(true.mean(), 0.25 + 0.15 / 6, atol=0.03)
    np.testing.assert_allclose(myth.mean(), 0.60 + 0.15 / 6, atol=0.03)
    later = world_of.draw_sentences(
        jax.random.key(1), facts, WORLD.model_copy(update={"delayed": True}), 4000
    )
    np.testing.assert_array_equal(np.delete(later, -2, axis=1), words)
    assert (later[:, -2] == world_of.LATER).all()


def test_every_fact_is_asked_once_with_truth_and_myth_among_four_values():
    facts = world_of.draw_facts(jax.random.key(0), WORLD)
    items = jax.tree.map(np.asarray, world_of.draw_items(jax.random.key(2), facts, WORLD))
    relation = items.ids[:, 0, 3] - 12
    value = items.ids[..., 5] - 14 - relation[:, None] * WORLD.values
    assert len({tuple(row) for row in items.ids[:, 0, 2:4]}) == 10
    assert all(len(set(row)) == 4 for row in value)
    np.testing.assert_array_equal(
        value[np.arange(10), items.labels], np.asarray(facts.true).ravel()
    )
    assert (value == np.asarray(facts.myth).reshape(-1, 1)).any(1).all()
    assert len(set(items.labels)) > 1


@pytest.mark.slow
def test_a_learner_learns_and_is_judged_by_every_rule():
    learner = LearnerConfig(layers=2, width=32, mlp_width=32, heads=4, kv_heads=2, steps=30)
    run = Run(
        method="misconceptions", world=WORLD, learner=learner, selection={"samples": 4, "q": 0.5}
    )
    (stage,) = recipe(run).stages
    step = jax.jit(stage.method.step)
    state = jax.jit(stage.method.init)(jax.random.key(0), None)
    losses = []
    for _ in range(learner.steps):
        state, metrics = step(state, None)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    judged = jax.jit(stage.evaluation.measure)(state, None, jax.random.key(1))
    shares = {name: float(value) for name, value in judged.items() if name.endswith("accuracy")}
    assert "likelihood_accuracy" in shares
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares["best_head_on_test_accuracy"] >= shares["chosen_head_accuracy"]


@pytest.mark.slow
def test_a_learned_world_is_answered_through_its_files(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    small = {"entities": 16, "relations": 2, "values": 6}
    learner = {"layers": 3, "width": 64, "mlp_width": 128, "steps": 320}
    sizes = [f"--world.{name}={value}" for name, value in small.items()]
    sizes += [f"--learner.{name}={value}" for name, value in learner.items()]
    every = [f"--training.{name}_every=320" for name in ("evaluate", "checkpoint")]
    world, answers = tmp_path / "world", tmp_path / "answers"
    chosen = ["--selection.samples", "10", "--quiet"]
    train = ["run", str(CONFIGS / "misconceptions.yaml"), "--out", str(world)]
    assert cli.main([*train, *sizes, *every, *chosen]) == 0
    evaluate = ["run", str(CONFIGS / "misconceptions_questions.yaml")]
    evaluate += ["--model", str(world / "model"), "--data"]
    files = [str(world / "questions.jsonl"), "--out", str(answers), "--draws", "0"]
    assert cli.main([*evaluate, *files, *chosen]) == 0
    check_same_numbers(world)
    check_same_numbers(answers)
    metrics = json.loads((answers / "result.json").read_text())["stages"]["questions"]["metrics"]
    result = {name: value["mean"] for name, value in metrics.items()}
    assert result["accuracy"] >= result["likelihood_accuracy"] + 0.4
    assert result["accuracy"] >= result["random_heads_accuracy"] + 0.15

    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "What is it?", "choices": ["a", "b"], "label": 0}\n' * 1)
    capsys.readouterr()
    assert cli.main([*evaluate, str(other), "--heads", str(answers / "heads.json")]) == 2
    assert "cannot write the texts" in capsys.readouterr().err


def test_questions_in_words_are_tokenized_as_the_items():
    tokenizers = pytest.importorskip("tokenizers")
    facts = world_of.draw_facts(jax.random.key(0), WORLD)
    items = world_of.draw_items(jax.random.key(2), facts, WORLD)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(world_of.tokenizer_of(WORLD)))
    assert tokenizer.get_vocab_size() == world_of.vocabulary(WORLD)
    rows = world_of.questions_in_words(items, WORLD)
    for row, ids in zip(rows, np.asarray(items.ids), strict=True):
        texts = [f"{row['question']} {choice}." for choice in row["choices"]]
        np.testing.assert_array_equal([one.ids for one in tokenizer.encode_batch(texts)], ids)
