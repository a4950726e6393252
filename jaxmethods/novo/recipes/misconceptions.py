"""`method: misconceptions` on the command line: a decoder learns a world, and norm voting reads it.

The stage trains a small Llama on sentences of `misconceptions` (next-token loss at every position,
AdamW, one cycle) and evaluates, on facts that didn't choose the heads, norm voting beside the
likelihood of the candidates and other baselines. It leaves behind what `method: novo` takes: the
model as a Hugging Face folder with its tokenizer, `model/`, and the questions, `questions.jsonl`
(with several seeds, `model_0/`, `questions_0.jsonl` and so on).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.files import write_atomically
from jaxmethods.language.next_token import LearnerState, Tokens, begin, next_token_learner
from jaxmethods.method import Batch, Method, Metrics, Objective, made_once
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.novo import baselines, heads
from jaxmethods.novo.config import MisconceptionsRun as Run
from jaxmethods.novo.config import SelectionConfig, World
from jaxmethods.novo.misconceptions import (
    TRUE,
    Facts,
    draw_facts,
    draw_items,
    draw_sentences,
    questions_in_words,
    tokenizer_of,
    vocabulary,
)
from jaxmethods.numerics.keys import named
from jaxmethods.stages import Diagnosable, Evaluation, Recipe, Results, Train

DIAGNOSED = 256
"""Sentences of either set that the decoder is diagnosed on."""


class State(NamedTuple):
    """A learner and its world."""

    facts: Facts
    learner: LearnerState


class Learned(NamedTuple):
    """What a run finds."""

    params: Any
    """The decoder's parameters."""
    facts: Facts


def recipe(run: Run) -> Recipe:
    """One stage: learning, judged by norm voting."""
    model = learner_config(run)
    learn = Train(
        "learn",
        made_once(trainer, run),
        run.learner.steps,
        result=lambda state, batch: Learned(state.learner.params, state.facts),
        evaluation=Evaluation(
            lambda state, batch, key: evaluate(state, key, model, run.world, run.selection),
            score="novo_accuracy",
        ),
        main=True,
    )
    names = ("novo", "random_heads", "likelihood")
    headline = tuple(f"learn/{name}_accuracy" for name in names)

    def ready(results: Results, seed: int) -> Callable[[jax.Array], jax.Array]:
        params = jax.tree.map(lambda leaf: leaf[seed], results["learn"].params)

        @jax.jit
        def logits(ids: jax.Array) -> jax.Array:
            """Next-token logits [B, T, V] of token ids [B, T]."""
            return decoder.forward(params, model, ids).logits

        return logits

    return Recipe(
        [learn], partial(report, run), ("learn",), headline, ready, partial(diagnosed, run)
    )


def diagnosed(run: Run, results: Results, seed: int) -> Diagnosable:
    """The decoder on sentences about its world; those that are held out are drawn anew.

    Args:
        run: the run's config.
        results: of its stage.
        seed: index into the run's seeds.

    Returns:
        Inputs are tokens [N, T], outputs logits of the next one [N, T, V].
    """
    model = learner_config(run)
    found: Learned = jax.tree.map(lambda leaf: leaf[seed], results["learn"])

    def apply(params: Any, ids: jax.Array) -> jax.Array:
        return decoder.forward(params, model, ids).logits

    def sentences(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        ids = draw_sentences(key, found.facts, run.world, DIAGNOSED)
        return ids[:, :-1], ids[:, 1:]

    keys = jax.random.split(named(jax.random.key(run.seed + seed), "diagnosis"))
    both = sentences(keys[0]), sentences(keys[1])
    return Diagnosable("a decoder of facts and myths", apply, found.params, "cross_entropy", *both)


def report(run: Run, results: Results, folder: Path) -> None:
    """Writes every seed's model, tokenizer and questions."""
    found: Learned = jax.device_get(results["learn"])
    for seed in range(run.seeds):
        learned = jax.tree.map(lambda leaf, seed=seed: leaf[seed], found)
        ending = f"_{seed}" if run.seeds > 1 else ""
        model = folder / f"model{ending}"
        decoder.save(model, learner_config(run), learned.params)
        write_atomically(model / "tokenizer.json", json.dumps(tokenizer_of(run.world)) + "\n")
        key = named(jax.random.key(run.seed + seed), "questions")
        items = draw_items(key, learned.facts, run.world)
        rows = [json.dumps(row) + "\n" for row in questions_in_words(items, run.world)]
        write_atomically(folder / f"questions{ending}.jsonl", "".join(rows))


def learner_config(run: Run) -> DecoderConfig:
    """The decoder: a small Llama with grouped heads over the words of the world."""
    learner = run.learner
    if learner.width % learner.heads:
        raise ValueError(f"learner.heads: expected a divisor of width, got {learner.heads}")
    return DecoderConfig.llama(vocabulary(run.world), learner, 16, learner.kv_heads)


def trainer(run: Run) -> Method:
    """Learning of sentences that are drawn anew at every step."""
    learner, world, model = run.learner, run.world, learner_config(run)
    schedule = optax.cosine_onecycle_schedule(learner.steps, learner.learning_rate)
    optimizer = optax.chain(
        optax.clip_by_global_norm(learner.clip),
        optax.adamw(schedule, weight_decay=learner.weight_decay),
    )

    learning = next_token_learner(
        model,
        optimizer,
        lambda key, facts: Tokens(draw_sentences(key, facts, world, learner.batch)),
    )

    def init(key: jax.Array, batch: Batch) -> State:
        del batch
        key, facts_key, params_key = jax.random.split(key, 3)
        params = decoder.init_params(params_key, model)
        return State(draw_facts(facts_key, world), begin(key, params, optimizer))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        del batch
        after, metrics = learning.step(state.learner, state.facts)
        return State(state.facts, after), metrics

    def objective(state: State, batch: Batch) -> Objective:
        del batch
        assert learning.objective is not None
        return learning.objective(state.learner, state.facts)

    return Method(init, step, objective)


def evaluate(
    state: State, key: jax.Array, model: DecoderConfig, world: World, selection: SelectionConfig
) -> Metrics:
    """Accuracies on the facts that did not choose the heads; all of them share these items.

    Args:
        state: with the model and the facts.
        key: [] typed random key.
        model: the decoder's sizes; static.
        world: sizes and shares; static.
        selection: how heads are chosen, and on how many facts; static.

    Returns:
        Metric -> []: accuracies as shares, and the number of voters.
    """
    items_key, order_key, random_key = jax.random.split(key, 3)
    items = draw_items(items_key, state.facts, world)
    number, candidates, length = items.ids.shape
    ids = items.ids.reshape(-1, length)  # [F C, T]
    last = jnp.full((ids.shape[0], 1), length - 1)
    outputs = decoder.forward(state.learner.params, model, ids, taps=("head_norms",), taps_at=last)
    norms = jnp.moveaxis(outputs.head_norms[:, :, 0], 0, 1)  # [F C, L, H]
    norms = norms.reshape(number, candidates, -1)  # [F, C, L H]
    log_probabilities = jax.nn.log_softmax(outputs.logits)
    said = jnp.take_along_axis(log_probabilities[:, 4:-1], ids[:, 5:, None], -1)
    likelihood = jnp.sum(said[..., 0], axis=1).reshape(number, candidates)  # [F, C]
    verdict = log_probabilities[:, -1, TRUE].reshape(number, candidates)  # [F, C]

    order = jax.random.permutation(order_key, number)
    train, test = order[: selection.samples], order[selection.samples :]
    mask = jnp.ones((number, candidates), bool)
    counts = heads.correct_counts(norms[train], mask[train], items.labels[train])
    questions = norms[test], mask[test], items.labels[test]

    def elected(voters: heads.Heads) -> jax.Array:
        return baselines.accuracy(heads.predict(*questions[:2], voters), questions[2])

    def likeliest(score: jax.Array) -> jax.Array:
        return baselines.accuracy(baselines.most_likely(score[test], mask[test]), questions[2])

    settings = {"q": selection.q, "voters": selection.voters}
    chosen = heads.select_heads(counts, rule=selection.rule, **settings)
    numbers = jnp.sum(chosen.max_mask), jnp.sum(chosen.min_mask)
    keys = jax.random.split(random_key, 16)
    total = norms.shape[-1]
    draws = jax.vmap(lambda key: elected(baselines.random_heads(key, total, *numbers)))(keys)
    other = "paper" if selection.rule == "code" else "code"
    return {
        "novo_accuracy": elected(chosen),
        f"{other}_rule_accuracy": elected(heads.select_heads(counts, rule=other, **settings)),
        "likelihood_accuracy": likeliest(likelihood),
        "random_heads_accuracy": jnp.mean(draws),
        "chosen_head_accuracy": elected(baselines.single_best(counts)),
        "best_head_on_test_accuracy": baselines.best_on_test(*questions),
        "verdict_accuracy": likeliest(verdict),
        "voters": numbers[0] + numbers[1],
    }
