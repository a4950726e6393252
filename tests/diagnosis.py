"""What every method that trains something has to hand to `method: interpret`."""

from __future__ import annotations

import jax
import numpy as np

from jaxmethods.diagnosis.recipe import own_data, problem_of
from jaxmethods.interpret.config import ReportRun
from jaxmethods.interpret.curvature import operators
from jaxmethods.interpret.report import measure_row
from jaxmethods.runs import LoadedRun


def check_diagnosable(run: LoadedRun) -> None:
    """A quick report has its losses, and can differentiate the model twice.

    Curvature is traced only: a report of tiny models compiles far longer than it runs.
    """
    config = ReportRun(method="interpret", model=run.folder, examples=8)
    found = run.diagnosable()
    own, held_out = (problem_of(config, found, data) for data in own_data(found))
    for name in ("train_loss", "gap"):
        row = measure_row(name, own, held_out, jax.random.key(0), "quick")
        assert np.isfinite([row.value, row.error]).all(), (name, row)
    kinds = (operators.hessian, operators.ggn, operators.empirical_fisher)
    products = jax.eval_shape(lambda own: [kind(own)(own.floats) for kind in kinds], own)
    for product in products:
        jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), product, own.floats)
