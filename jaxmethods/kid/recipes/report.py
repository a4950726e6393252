"""What a distillation leaves: a table, figures, answers beside gold ones, and model folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmethods.files import write_atomically
from jaxmethods.kid.config import DistillRun
from jaxmethods.kid.recipes import figures
from jaxmethods.kid.recipes.folders import save_models
from jaxmethods.kid.recipes.judging import JUDGED, Judged
from jaxmethods.kid.recipes.learning import TEACHER, learns_teacher
from jaxmethods.kid.recipes.material import Material, Texts
from jaxmethods.kid.recipes.models import Models
from jaxmethods.numerics.statistics import markdown_table, mcnemar, mean_and_error, standard_error
from jaxmethods.stages import Results

SHOWN_ROWS = 3
LONGEST_CELL = 70
GOOD_TEACHER, ABOVE_SFT = 80.0, 15.0
"""Points of execution accuracy that a comparison of students presupposes."""


def report(
    run: DistillRun, models: Models, material: Material, results: Results, folder: Path
) -> None:
    """Writes table.md, figures, answers.jsonl, and all trained models.

    Args:
        run: the config.
        models: student and teacher.
        material: questions as texts and arrays.
        results: of all stages.
        folder: gets the files; the run's record is beside it.
    """
    judged: Judged = results[JUDGED]
    texts = material.texts(results)
    rows = read_rows(folder.parent)
    parts = [
        precondition(judged, run.data.train),
        scores(judged, rows),
        comparisons(judged),
        examples(run, judged, texts),
        measured_with(run, judged, texts),
    ]
    write_atomically(folder / "table.md", "\n\n".join(part for part in parts if part) + "\n")
    figures.draw_execution(judged, folder / "figures" / "execution_accuracy.png")
    if judged.exposure:
        figures.draw_exposure(judged, folder / "figures" / "accumulated_error.png")
    curves = execution_by_step(rows)
    if curves:
        figures.draw_steps(curves, folder / "figures" / "execution_by_step.png")
    write_atomically(folder / "answers.jsonl", answers(judged, texts))
    if learns_teacher(run):
        save_models(folder / TEACHER, models.teacher, results[TEACHER], texts.tokenizer, run.seeds)
    for student in run.students:
        place = folder / "students" / student.title
        save_models(place, models.student, results[student.title], texts.tokenizer, run.seeds)


def precondition(judged: Judged, train: str) -> str:
    """Whether the teacher knows what it has learned, and whether there is a gap that distillation
    could close.

    Args:
        judged: what the judge said.
        train: name of the split that is trained on, which may be among those that are judged.

    Returns:
        A paragraph for each question that can be answered.
    """
    if train not in judged.splits:
        return gap(judged)
    answered = judged.verdicts[TEACHER][train].execution
    verdict = "holds" if 100 * answered.mean() >= GOOD_TEACHER else "does not hold"
    learned = (
        f"Precondition: the teacher answers {counted_cell(answered)} % of the questions that it "
        f"has learned right (expected: at least {GOOD_TEACHER:.0f}). It {verdict}."
    )
    return f"{learned}\n\n{gap(judged)}"


def gap(judged: Judged) -> str:
    """How far the teacher is above the student that learns from gold queries alone."""
    split = judged.splits[0]
    answered = judged.verdicts[TEACHER][split].execution
    teacher = 100 * answered.mean()
    text = f"Precondition: the teacher answers {counted_cell(answered)} % of {split} right"
    sft = judged.verdicts.get("sft")
    if sft is None:
        return f"{text}; no student was trained on gold queries alone."
    above = teacher - 100 * sft[split].execution.mean()
    holds = teacher >= GOOD_TEACHER and above >= ABOVE_SFT
    verdict = "holds" if holds else "does not hold: differences between students mean little"
    return (
        f"{text} (expected: at least {GOOD_TEACHER:.0f}), {above:.1f} points more than the student "
        f"that learns from gold queries alone (expected: at least {ABOVE_SFT:.0f}). It {verdict}."
    )


def scores(judged: Judged, rows: Sequence[Mapping[str, Any]]) -> str:
    """A row a model: what it answers, what it costs."""
    splits = judged.splits
    first = splits[0]
    counts = {split: judged.verdicts[TEACHER][split].execution.shape[1] for split in splits}
    head = ["model", *(f"EX {split} (n {counts[split]})" for split in splits)]
    head += [f"{name} {first}" for name in ("EM", "fails", "no end")]
    head += [f"TS-fuzz {first}"] if judged.fuzzed else []
    head += ["EX by vote"] if judged.voted else []
    head += ["ExAccErr", "fill accuracy", "s a step"]
    lines = []
    for title in judged.titles:
        verdicts = judged.verdicts[title]
        cells = [title, *(cell(verdicts[split].execution) for split in splits)]
        own = verdicts[first]
        cells += [cell(own.exact), cell(own.failed), cell(~own.ended)]
        cells += [cell(judged.fuzzed[title])] if judged.fuzzed else []
        cells += [cell(judged.voted[title].execution)] if judged.voted else []
        cells.append(exposure_cell(judged, title))
        fills, seconds = fill_accuracy(rows, title), seconds_a_step(rows, title)
        cells.append("" if fills is None else f"{100 * fills:.0f} %")
        cells.append("" if seconds is None else f"{seconds:.3f}")
        lines.append(cells)
    constant = [share_cell(judged.frequent[split], counts[split]) for split in splits]
    lines.append(["most frequent query", *constant, *[""] * (len(head) - len(splits) - 1)])
    note = (
        "Percent. EX: the result is that of the gold query; EM: exact set match. Behind ± the "
        "standard error over seeds, where there are several; in brackets that over the n questions "
        f"(EM, fails and no end: those of {first}). ExAccErr: excess of the accumulated error on "
        f"a student's own responses{asked_for(judged)}. Seconds are those of training, without "
        "compiling."
    )
    return f"{markdown_table(head, lines)}\n\n{note}"


def cell(values: np.ndarray) -> str:
    """Percent of [S, Q], with errors over seeds and questions."""
    error = 100 * float(standard_error(values.mean(0)))
    return f"{plain_cell(100 * values.mean(1), 1)} ({error:.1f})"


def counted_cell(values: np.ndarray) -> str:
    """A cell that says of how many questions."""
    return f"{cell(values)[:-1]}; n {values.shape[1]})"


def share_cell(share: float, number: int) -> str:
    """Percent of `number` questions, with the error over them."""
    error = np.sqrt(share * (1 - share) / max(number - 1, 1))
    return f"{100 * share:.1f} ({100 * error:.1f})"


def exposure_cell(judged: Judged, title: str) -> str:
    """Percent of excess, with errors over seeds and questions; nothing where it wasn't measured."""
    if title not in judged.exposure:
        return ""
    measured = judged.exposure[title]
    error = np.sqrt(np.mean(measured.deviations**2) / len(measured.deviations))
    return f"{plain_cell(measured.curves[:, -1], 1)} ({error:.1f})"


def asked_for(judged: Judged) -> str:
    """How many questions accumulated errors were measured on."""
    numbers = {measured.questions for measured in judged.exposure.values()}
    return f" (n {max(numbers)})" if numbers else ""


def plain_cell(values: np.ndarray, digits: int) -> str:
    """A mean of [S], with its error over seeds."""
    mean, error = mean_and_error(np.asarray(values, float))
    text = f"{mean:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def comparisons(judged: Judged) -> str:
    """Exact McNemar tests of all students against one of them, seeds pooled."""
    titles = [title for title in judged.titles if title != TEACHER]
    if len(titles) < 2:
        return ""
    base = "rkd" if "rkd" in titles else titles[0]
    lines = []
    for title in titles:
        if title == base:
            continue
        for split in judged.splits:
            one, other = (judged.verdicts[x][split].execution.ravel() for x in (title, base))
            found = mcnemar(one, other)
            gain = 100 * (one.mean() - other.mean())
            counts = [str(found.only_first), str(found.only_second)]
            lines.append([title, split, f"{gain:+.1f}", *counts, f"{found.p:.2g}"])
    head = ["student", "split", f"EX over {base}", "only it is right", f"only {base} is", "p"]
    return f"{markdown_table(head, lines)}\n\nExact McNemar tests on the same questions."


def examples(run: DistillRun, judged: Judged, texts: Texts) -> str:
    """Answers of the last student beside gold ones, with the first rows of their results."""
    if not run.evaluation.shown:
        return ""
    title, split = run.students[-1].title, judged.splits[0]
    verdicts, asked = judged.verdicts[title][split], texts.judged[split].examples
    places = np.linspace(0, len(asked) - 1, min(run.evaluation.shown, len(asked))).astype(int)
    executor = texts.questions.executor()
    lines = []
    for place in places:
        example, answer = asked[place], verdicts.texts[0][place]
        results = [executor.execute(example.database, q) for q in (answer, example.query)]
        right = "yes" if verdicts.execution[0, place] else "no"
        own, gold = (first_rows(result) for result in results)
        shown = [f"{example.database_id}: {example.text}", answer, own, example.query, gold]
        lines.append([*map(escaped, shown), right])
    head = ["question", title, "its rows", "gold", "its rows", "right"]
    return markdown_table(head, lines)


def first_rows(result: Any) -> str:
    """The beginning of a result, or why there is none."""
    if not result.ok:
        return f"{result.status}: {result.message}"[:LONGEST_CELL]
    rows = [", ".join(map(str, row)) for row in result.rows[:SHOWN_ROWS]]
    more = f" ; ... ({len(result.rows)} rows)" if len(result.rows) > SHOWN_ROWS else ""
    return ("; ".join(rows) or "no rows")[:LONGEST_CELL] + more


def escaped(text: str) -> str:
    """Text that ends no cell of a table."""
    return " ".join(text.replace("|", "/").split())


def measured_with(run: DistillRun, judged: Judged, texts: Texts) -> str:
    """The evaluator, SQLite, and the databases' hashes."""
    files = ", ".join(f"{name} {digits}" for name, digits in judged.databases.items())
    cut = " and ".join(f"{number} {name}" for name, number in texts.cut.items())
    beams, copies = run.evaluation.beams, run.evaluation.fuzz
    how = f"first executable of {beams} beams" if beams > 1 else "greedy"
    fuzz = f" TS-fuzz: right on {copies} changed copies of the database, too." if copies else ""
    return (
        f"Decoding: {how}. Executed by SQLite {judged.sqlite}, one database each, DISTINCT "
        f"dropped, no value plugging.{fuzz} Too long, and cut: {cut}. Databases: {files}."
    )


def answers(judged: Judged, texts: Texts) -> str:
    """All answers, a line each."""
    lines = []
    for title in judged.titles:
        for split in judged.splits:
            verdicts = judged.verdicts[title][split]
            for seed, own in enumerate(verdicts.texts):
                for place, example in enumerate(texts.judged[split].examples):
                    row = {
                        "model": title,
                        "split": split,
                        "seed": seed,
                        "id": example.id,
                        "answer": own[place],
                        "right": bool(verdicts.execution[seed, place]),
                    }
                    lines.append(json.dumps(row) + "\n")
    return "".join(lines)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The run's record."""
    record = path / "metrics.jsonl"
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    return [json.loads(line) for line in lines]


def fill_accuracy(rows: Sequence[Mapping[str, Any]], stage: str) -> float | None:
    """The share of fills that were gold, over the whole training; None where nothing was filled."""
    own = [row for row in rows if row["stage"] == stage and "train/fill_accuracy" in row]
    if not own or not np.mean([np.mean(row["train/filled"]) for row in own]):
        return None
    return float(np.mean([np.mean(row["train/fill_accuracy"]) for row in own]))


def seconds_a_step(rows: Sequence[Mapping[str, Any]], stage: str) -> float | None:
    """The median over chunks of steps; None where nothing was trained."""
    own = [row for row in rows if row["stage"] == stage and "steps_per_second" in row]
    return float(np.median([1 / row["steps_per_second"] for row in own])) if own else None


def execution_by_step(
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, list[tuple[int, float]]]:
    """Stage -> steps and execution accuracies while it trained."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if "evaluate/execution" in row:
            point = (row["step"], float(np.mean(row["evaluate/execution"])))
            found.setdefault(row["stage"], []).append(point)
    return found
