"""Answering a file of multiple-choice questions: what is run, and what is reported.

`recipe` reads and checks everything before the model runs. Its one stage has a part for every few
batches of scores, so that a run that is stopped goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmethods.config import ConfigError
from jaxmethods.data.mcq import Question, read_questions
from jaxmethods.data.tokenizer import byte_tokenizer, load_tokenizer
from jaxmethods.errors import UserError
from jaxmethods.files import write_atomically
from jaxmethods.language.prompts import PromptSpec, canonical_labels, tokenize_questions
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.hub import open_folder
from jaxmethods.novo import heads, measures
from jaxmethods.novo.config import QuestionsRun as Run
from jaxmethods.novo.recipes import figures
from jaxmethods.novo.resample import Questions
from jaxmethods.novo.score import Part as BatchScores
from jaxmethods.novo.score import Scores, collect, score_batches
from jaxmethods.novo.tree import Tree, build_tree
from jaxmethods.stages import Compute, Part, Recipe, Results

BATCHES_PER_PART = 16


POOL = 10
"""Other selections are drawn from questions this many times as numerous as a selection."""


class Roles(NamedTuple):
    """Indices of questions."""

    discovery: np.ndarray
    """Those that choose the heads."""
    judged: np.ndarray
    """Those that are answered."""
    pool: np.ndarray
    """Those from which other selections are drawn."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Questions, ready to be scored, and what each is for."""

    run: Run
    config: DecoderConfig
    questions: list[Question]
    labels: np.ndarray
    tree: Tree
    roles: Roles

    @property
    def layers(self) -> tuple[int, int]:
        """The layers whose heads may vote: from, to and without."""
        first, after = self.run.norms.layers or (0, self.config.layers)
        if not 0 <= first < after <= self.config.layers:
            raise ConfigError(
                f"norms.layers: expected a range within the {self.config.layers} layers, "
                f"got {first} to {after}"
            )
        return first, after


class Answers(NamedTuple):
    """What the model's heads say."""

    metrics: dict[str, float]
    """The important ones first."""
    heads: heads.Heads
    """Those that voted."""
    votes: np.ndarray
    """[Q, C]"""
    predictions: np.ndarray
    """[Q]"""
    labels: np.ndarray
    """[Q]"""


def recipe(run: Run) -> Recipe:
    """One stage: scores of all candidates, from which heads are chosen and questions answered.

    Raises:
        UserError: whatever is wrong with model, tokenizer, questions or config, before any of them
            is run.
    """
    task, source = prepare(run)
    scores = Compute(
        "questions",
        lambda results, place: _parts(task, place.mesh, source),
        partial(answer, task),
        metrics=lambda answers: answers.metrics,
    )
    return Recipe(
        [scores],
        partial(report, task),
        reads=("questions",),
        headline=("questions/accuracy", "questions/likelihood_accuracy"),
    )


def prepare(run: Run) -> tuple[Task, str]:
    """Reads model and questions, tokenizes, checks and plans; and what the scores depend on."""
    questions, roles = _read(run)
    tokenize = byte_tokenizer if run.tokenizer == "bytes" else load_tokenizer(run.model)
    folder = open_folder(run.model)
    config = decoder.read_config(folder)
    spec = PromptSpec(
        run.prompt.template, run.prompt.instruction, run.prompt.question, run.prompt.choice
    )
    tokens = tokenize_questions(
        tokenize,
        spec,
        questions,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
    )
    tree = build_tree(
        tokens.sequences,
        tokens.prompt_lengths,
        share_root=run.mode == "tree",
        batch_tokens=run.batch_tokens,
    )
    labels = np.asarray(
        canonical_labels(tokens.sequences, [question.label for question in questions]), np.int32
    )
    task = Task(run, config, questions, labels, tree, roles)
    first, after = task.layers
    if run.heads is not None:
        _read_heads(run.heads, (after - first) * config.heads, after - first)
    weights = [
        (str(stored.file), stored.file.stat().st_size, stored.file.stat().st_mtime_ns)
        for stored in folder.tensors.values()
    ]
    scored = (run.norms.order, run.norms.tokens, run.dtype, run.likelihood, run.batch_tokens)
    source = (config, sorted(set(weights)), scored, run.mode, tokens)
    return task, hashlib.sha256(repr(source).encode()).hexdigest()[:16]


def answer(task: Task, parts: Sequence[Mapping[str, Any]]) -> Answers:
    """From the scores of all batches to accuracies, votes and figures."""
    scores = _collect(task, parts)
    run, (first, after) = task.run, task.layers
    columns = slice(first * task.config.heads, after * task.config.heads)
    scores = scores._replace(norms=_rounded(scores.norms[..., columns], run.norms.rounding))
    discovery, judged, pool = (_questions(scores, task.labels, where) for where in task.roles)
    settings: dict[str, Any] = {"q": run.selection.q, "rule": run.selection.rule}
    settings["voters"] = run.selection.voters
    if run.heads is None:
        chosen = heads.fit(*discovery, **settings)
    else:
        chosen = _read_heads(run.heads, scores.norms.shape[-1], after - first)
    if not bool(chosen.ok):
        raise UserError(
            "selection: no head votes: all counts are equal, or every selected head was selected "
            "for both directions; use more samples or another q"
        )
    votes, predictions = jax.vmap(heads.vote, (0, 0, None))(*judged[:2], chosen)
    metrics = measures.accuracies(judged, chosen, predictions, run.seed)
    source = [task.questions[place].source_order for place in task.roles.judged]
    if any(source):
        metrics["source_order_accuracy"] = measures.in_source_order(judged, chosen, source)
    if scores.likelihood is not None and scores.lengths is not None:
        own = scores.likelihood[task.roles.judged], scores.lengths[task.roles.judged]
        metrics |= measures.likelihood_accuracies(judged, *own)
    if run.heads is None:
        metrics |= measures.baseline_accuracies(discovery, judged)
    if run.heads is None and run.draws and len(task.roles.pool) > run.selection.samples:
        others = None if run.discovery is None else judged
        sizes = {"draws": run.draws, "samples": run.selection.samples}
        key = jax.random.key(run.seed)
        metrics |= measures.over_draws(key, pool, others, **sizes, **settings)
    metrics |= measures.ties(judged) | _accounting(task)
    return Answers(
        metrics, chosen, np.asarray(votes), np.asarray(predictions), np.asarray(judged.labels)
    )


def report(task: Task, results: Results, folder: Path) -> None:
    """Writes the heads, what they answered, and figures."""
    answers: Answers = results["questions"]
    first, after = task.layers
    heads_file = heads.heads_to_json(answers.heads, after - first) + "\n"
    write_atomically(folder / "heads.json", heads_file)
    predicted = _predictions(task, answers.votes, answers.predictions)
    write_atomically(folder / "predictions.jsonl", predicted)
    figures.draw(
        folder / "figures",
        voters=heads.heads_to_indices(answers.heads),
        layers=range(first, after),
        heads=task.config.heads,
        votes=answers.votes,
        labels=answers.labels,
        metrics=answers.metrics,
    )


def _read(run: Run) -> tuple[list[Question], Roles]:
    questions = read_questions(run.data)[: run.limit]
    number, samples = len(questions), 0 if run.heads is not None else run.selection.samples
    pool = questions if run.discovery is None else read_questions(run.discovery)
    if samples > len(pool) - (run.discovery is None):
        raise ConfigError(
            f"selection.samples: expected {'fewer than' if run.discovery is None else 'at most'} "
            f"the {len(pool)} questions of {run.discovery or run.data}, got {samples}"
        )
    order = np.random.default_rng(run.seed).permutation(len(pool))
    if run.discovery is None:
        return questions, Roles(np.sort(order[:samples]), np.sort(order[samples:]), np.sort(order))
    # Some more than the selection needs, so that other selections can be drawn.
    kept = order[: POOL * samples if run.draws else samples]
    places = number + np.arange(len(kept))
    return questions + [pool[i] for i in kept], Roles(places[:samples], np.arange(number), places)


def _parts(task: Task, whole: Mesh, source: str) -> list[Part]:
    mesh = whole if whole.size > 1 else None
    run, number = task.run, len(task.tree.batches)
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "stored": None}[run.dtype]
    loaded: list[Any] = []

    def compute(first: int) -> Mapping[str, Any]:
        if not loaded:  # only when there is anything left to run
            loaded.append(decoder.load(run.model, dtype=dtype, mesh=mesh)[1])
        tree = task.tree._replace(batches=task.tree.batches[: first + BATCHES_PER_PART])
        parts = score_batches(
            loaded[0],
            task.config,
            tree,
            likelihood=run.likelihood,
            order=run.norms.order,
            tokens=run.norms.tokens,
            mesh=mesh,
            first=first,
        )
        host = jax.device_get(list(parts))
        return {
            f"{place}.{name}": value
            for place, part in enumerate(host)
            for name, value in part._asdict().items()
            if value is not None
        }

    return [
        Part(f"{source}-{first:06d}", partial(compute, first))
        for first in range(0, number, BATCHES_PER_PART)
    ]


def _collect(task: Task, parts: Sequence[Mapping[str, Any]]) -> Scores:
    batches = []
    for part in parts:
        number = sum(name.endswith(".norms") for name in part)
        for place in range(number):
            fields: dict[str, Any] = {
                name: part.get(f"{place}.{name}") for name in BatchScores._fields
            }
            batches.append(BatchScores(**fields))
    return collect(task.tree, batches)


def _questions(scores: Scores, labels: np.ndarray, where: np.ndarray) -> Questions:
    parts = (scores.norms, scores.mask, labels)
    return Questions(*(jnp.asarray(part[where]) for part in parts))


def _rounded(norms: np.ndarray, rounding: str) -> np.ndarray:
    if rounding == "none":
        return norms
    return norms.astype(jnp.dtype(rounding)).astype(np.float32)


def _read_heads(path: Path, total: int, layers: int) -> heads.Heads:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"heads {path}: cannot be read") from error
    return heads.heads_from_json(text, total, layers)


def _accounting(task: Task) -> dict[str, float]:
    cost = task.tree.cost
    distinct = [len(set(row[row >= 0])) for row in task.tree.slots]
    merged = int((task.tree.slots >= 0).sum()) - sum(distinct)
    return {
        "questions": len(task.roles.judged),
        "candidates": int((task.tree.slots[task.roles.judged] >= 0).sum()),
        "equal_candidates": merged,
        "tokens": cost.tokens,
        "tokens_one_row_each": cost.naive,
        "padding": 1 - cost.tokens / cost.padded,
        "programs": cost.shapes,
    }


def _predictions(task: Task, votes: np.ndarray, predictions: np.ndarray) -> str:
    lines = []
    for row, place in enumerate(task.roles.judged):
        question = task.questions[place]
        content = {
            "id": question.id,
            "prediction": int(predictions[row]),
            "label": question.label,
            "correct": bool(predictions[row] == task.labels[place]),
            "votes": votes[row, : len(question.choices)].tolist(),
        }
        lines.append(json.dumps(content) + "\n")
    return "".join(lines)
