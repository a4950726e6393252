"""How far students drift on their own responses, measured again on a finished run's students.

    python -m benchmarks.kid_exposure RUN --questions 500 --samples 4 --json exposure.json

`RUN` is a folder that `jaxmethods run` with method kid has left, whose teacher was read from a
folder. Nothing is trained. A row for every student: ExAccErr in percent with its error over seeds
and over questions, the two accumulated errors (nats a response) that it is the ratio of, and its
difference from another student's, whose error over questions is that of pairs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods import registry
from jaxmethods.config import read_yaml
from jaxmethods.files import write_atomically
from jaxmethods.kid.config import DistillRun
from jaxmethods.kid.recipes.judging import Asking
from jaxmethods.kid.recipes.learning import Learned
from jaxmethods.kid.recipes.material import Material
from jaxmethods.kid.recipes.models import Models
from jaxmethods.layout import Layout
from jaxmethods.models import decoder
from jaxmethods.numerics.statistics import standard_error
from jaxmethods.stages import Arrays


class OneDevice:
    """Leaves arrays where they are."""

    @property
    def mesh(self) -> Any:
        """Of one device."""
        return jax.make_mesh((1,), ("data",))

    def __call__(self, tree: Any, layout: Layout) -> Any:
        """Arrays of the device."""
        return jax.tree.map(jnp.asarray, tree)


def asking_of(folder: Path, questions: int, samples: int) -> Asking:
    """The questions of a finished run, whose results are its students' folders."""
    values = read_yaml(folder / "config.yaml")
    values["evaluation"] |= {"exposure": questions, "exposure_samples": samples}
    run = registry.parse_config(values, str(folder))
    assert isinstance(run, DistillRun)
    models = Models(run)
    results: dict[str, Any] = {"world": folder / "world"}
    for student in run.students:
        own = [folder / "students" / f"{student.title}_{seed}" for seed in range(run.seeds)]
        params = [decoder.load(one)[1] for one in own]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
        results[student.title] = Learned(stacked, None)
    texts = Material(run, models).texts(results)
    return Asking(run, models, texts, results, OneDevice())


class Errors:
    """Accumulated errors of one student, and the excess that follows."""

    def __init__(self, measured: Arrays):
        """Sums over tokens of [S, E, R]."""
        self.own, self.other = (
            measured[name].astype(float).sum(-1) for name in ("on_student", "on_teacher")
        )  # [S, E]
        ratio = self.own.mean(1) / self.other.mean(1)
        self.excess = 100 * (ratio - 1)
        residual = self.own - ratio[:, None] * self.other
        self.parts = 100 * residual / self.other.mean(1, keepdims=True)
        """[S, E]: what a question adds to the error of the ratio of means, to first order."""

    def row(self, base: Errors) -> dict[str, Any]:
        """Numbers, and those of the difference from another student."""
        difference, parts = self.excess - base.excess, self.parts - base.parts
        return {
            "excess": self.excess.tolist(),
            "mean": float(self.excess.mean()),
            "error_over_seeds": float(standard_error(self.excess)),
            "error_over_questions": float(standard_error(self.parts.mean(0))),
            "on_student": float(self.own.mean()),
            "on_teacher": float(self.other.mean()),
            "difference": difference.tolist(),
            "difference_mean": float(difference.mean()),
            "difference_error_over_seeds": float(standard_error(difference)),
            "difference_error_over_questions": float(standard_error(parts.mean(0))),
        }


def measure(asking: Asking, titles: list[str], base: str) -> dict[str, Any]:
    """Student -> its row."""
    found = {}
    for title in [base, *(one for one in titles if one != base)]:
        found[title] = Errors(asking.exposure(title))
        print(json.dumps({"student": title} | found[title].row(found[base])), flush=True)
    return {title: one.row(found[base]) for title, one in found.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--students", nargs="+", help="default: all of the run")
    parser.add_argument("--base", default="rkd", help="the student that others are compared with")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    asking = asking_of(given.run, given.questions, given.samples)
    titles = given.students or [student.title for student in asking.run.students]
    rows = measure(asking, titles, given.base)
    if given.json is not None:
        settings = {"questions": given.questions, "samples": given.samples, "base": given.base}
        write_atomically(given.json, json.dumps(settings | {"students": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
