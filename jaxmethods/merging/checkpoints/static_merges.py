"""Every static merge, declared once.

The config of checkpoints (`merging.config`: which names there are, which parameters each has and
their defaults), the merge itself (`streaming`), the card, the command's help and
docs/methods/static_merges.md follow from this table. A new merge is a file with its function, and
a row here; a parameter that no other merge has is a field of `MergeConfig` besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmethods.merging.checkpoints import whole_experts
from jaxmethods.merging.checkpoints.parts import Loaded, MergeInPasses, MergePart, Settings
from jaxmethods.merging.static import (
    arithmetic,
    breadcrumbs,
    dare,
    della,
    iso_c,
    pcb,
    ties,
    trees,
    tsv,
)
from jaxmethods.merging.static.trees import apply_task_vectors, combine, task_vectors
from jaxmethods.numerics.statistics import markdown_table

Needs: TypeAlias = Literal["entry", "tensor", "experts"]
"""What a merged entry depends on: that entry of all checkpoints, the tensor it is in, or whole
experts."""
NEEDS = {"entry": "that entry alone", "tensor": "its tensor", "experts": "whole experts"}


class StaticMerge(NamedTuple):
    """One row: what there is to know of a merge that needs nothing besides the checkpoints."""

    name: str
    """In configs."""
    title: str
    paper: str
    """Its arXiv number; empty where it has none."""
    result: str
    """What comes out, in a line."""
    function: Callable[..., Any]
    """On trees in memory."""
    parameters: Mapping[str, Any]
    """Name -> default; fields of `MergeConfig`."""
    needs: Needs
    one_part: MergePart | None = None
    """Merges a part that it gets to see alone."""
    in_passes: MergeInPasses | None = None
    """Merges all parts where whole experts are compared."""
    random: bool = False
    """Draws masks, from the run's seed."""
    one_coefficient: bool = False
    """Its coefficient is one number, not one for each expert."""
    experts: int | None = None
    """The number of experts it takes, where it is fixed."""
    check: Callable[[Settings], None] | None = None
    """Raises `ValueError` where parameters don't fit each other."""

    def needs_with(self, settings: Settings) -> Needs:
        """What an entry depends on with these settings: scope "leaf" stays within the tensor."""
        return "tensor" if settings.get("scope") == "leaf" else self.needs

    def may_cut(self, settings: Settings) -> bool:
        """Whether ranges of a tensor may be merged by themselves. Masks are of whole tensors."""
        return self.needs_with(settings) != "tensor" and not self.random


def _average(loaded: Loaded, coefficient: Any, settings: Settings) -> jax.Array:
    # Experts may be narrower than the base, and `average` returns their type.
    stack = loaded.stack.astype(jnp.promote_types(loaded.stack.dtype, jnp.float32))
    normalize = settings["normalize"] and coefficient is not None
    return arithmetic.average(stack, coefficient, normalize).astype(loaded.base.dtype)


def _ties(loaded: Loaded, coefficient: Any, settings: Settings) -> jax.Array:
    return ties.ties(
        loaded.base,
        loaded.stack,
        density=settings["density"],
        coefficients=coefficient,
        merge=settings["merge"],
        scope="leaf",
    )


def _ties_mergekit(loaded: Loaded, coefficient: Any, settings: Settings) -> jax.Array:
    return ties.ties(
        loaded.base,
        loaded.stack,
        density=settings["density"],
        coefficients=coefficient,
        flavor="mergekit",
    )


def _dare_ties(loaded: Loaded, coefficient: Any, settings: Settings) -> jax.Array:
    mask, drop = whole_experts.mask_of(loaded, settings), settings["drop"]
    given = (loaded.base, loaded.stack, mask, drop, settings["density"], coefficient)
    return ties.merge_elected(*given, merge=settings["merge"], scope="leaf")


def _dare(loaded: Loaded, tau: jax.Array, settings: Settings) -> jax.Array:
    if settings["matrices_only"] and not dare.matrices(loaded.part.name, tau[0]):
        return tau
    p = settings["drop"] if settings["rescale"] else 0
    return dare.drop_entries(tau, whole_experts.mask_of(loaded, settings), p)


def _breadcrumbs(loaded: Loaded, tau: jax.Array, settings: Settings) -> jax.Array:
    return breadcrumbs.breadcrumbs(tau, settings["density"], settings["gamma"])


def _della(loaded: Loaded, tau: jax.Array, settings: Settings) -> jax.Array:
    key = trees.leaf_key(jax.random.key(settings["seed"]), loaded.part.name)
    options = [settings[name] for name in ("density", "epsilon", "rescale")]
    return della.della_leaf(key, tau, *options)


def _of_vectors(thin: Callable[[Loaded, jax.Array, Settings], jax.Array]) -> MergePart:
    """theta_0 + sum_t c_t tau'_t of thinned task vectors."""

    def merge(loaded: Loaded, coefficient: Any, settings: Settings) -> jax.Array:
        tau = thin(loaded, task_vectors(loaded.base, loaded.stack), settings)
        return apply_task_vectors(loaded.base, tau, coefficient)

    return merge


def _check_della(settings: Settings) -> None:
    della.check_probabilities(settings["density"], settings["epsilon"])


_ROWS = (
    StaticMerge(
        name="average",
        title="averaging",
        paper="2203.05482",
        result="the experts' mean, or a weighted one",
        function=arithmetic.average,
        parameters={"coefficient": None, "normalize": True},
        needs="entry",
        one_part=_average,
    ),
    StaticMerge(
        name="task_arithmetic",
        title="task arithmetic",
        paper="2212.04089",
        result="the base plus a share of every task vector",
        function=arithmetic.task_arithmetic,
        parameters={"coefficient": 0.3},
        needs="entry",
        one_part=lambda part, c, settings: combine(part.base, part.stack, c),
    ),
    StaticMerge(
        name="ties",
        title="TIES",
        paper="2306.01708",
        result="largest entries vote on a sign, and those that agree are added",
        function=ties.ties,
        parameters={"coefficient": 0.3, "density": 0.2, "merge": "sum", "scope": "global"},
        needs="experts",
        one_part=_ties,
        in_passes=whole_experts.ties,
    ),
    StaticMerge(
        name="ties_mergekit",
        title="TIES as in mergekit",
        paper="2403.13257",
        result="TIES by the tensor, of weighted task vectors, divided by the weights that agree",
        function=ties.ties,
        parameters={"coefficient": 0.3, "density": 0.2},
        needs="tensor",
        one_part=_ties_mergekit,
    ),
    StaticMerge(
        name="dare",
        title="DARE",
        paper="2311.03099",
        result="task arithmetic of task vectors with random entries dropped, the others rescaled",
        function=dare.dare,
        parameters={"coefficient": 0.3, "drop": 0.5, "rescale": True, "matrices_only": False},
        needs="entry",
        one_part=_of_vectors(_dare),
        random=True,
    ),
    StaticMerge(
        name="dare_ties",
        title="DARE and TIES",
        paper="2311.03099",
        result="TIES of what DARE leaves of the task vectors",
        function=dare.dare_ties,
        parameters={"coefficient": 0.3, "drop": 0.5, "density": 1.0}
        | {"merge": "sum", "scope": "global"},
        needs="experts",
        one_part=_dare_ties,
        in_passes=whole_experts.ties,
        random=True,
    ),
    StaticMerge(
        name="breadcrumbs",
        title="Model Breadcrumbs",
        paper="2312.06795",
        result="task arithmetic without each tensor's largest and smallest changes",
        function=breadcrumbs.breadcrumbs,
        parameters={"coefficient": 0.3, "density": 0.9, "gamma": 0.01},
        needs="tensor",
        one_part=_of_vectors(_breadcrumbs),
    ),
    StaticMerge(
        name="della",
        title="DELLA",
        paper="2406.11617",
        result="DARE with keep probabilities that grow with magnitude",
        function=della.della,
        parameters={"coefficient": 0.3, "density": 0.5, "epsilon": 0.1, "rescale": True},
        needs="tensor",
        one_part=_of_vectors(_della),
        random=True,
        check=_check_della,
    ),
    StaticMerge(
        name="pcb",
        title="PCB",
        paper="2410.02396",
        result="task vectors weighted by how they compete within and between tasks",
        function=pcb.pcb,
        parameters={"coefficient": 1.2, "ratio": 0.1},
        needs="experts",
        in_passes=whole_experts.pcb,
        one_coefficient=True,
    ),
    StaticMerge(
        name="model_stock",
        title="Model Stock",
        paper="2403.19522",
        result="between base and mean, by the angle between the task vectors",
        function=arithmetic.model_stock,
        parameters={},
        needs="tensor",
        one_part=lambda part, c, settings: arithmetic.model_stock(part.base, part.stack),
    ),
    StaticMerge(
        name="slerp",
        title="spherical interpolation",
        paper="",
        result="on the arc from base to expert",
        function=arithmetic.slerp,
        parameters={"coefficient": 0.5},
        needs="tensor",
        one_part=lambda part, c, settings: arithmetic.slerp(part.base, part.stack[0], c),
        one_coefficient=True,
        experts=1,
    ),
    StaticMerge(
        name="tsv",
        title="TSV-M",
        paper="2412.00081",
        result="the strongest singular vectors of all task vectors, made orthonormal",
        function=tsv.tsv_merge,
        parameters={"coefficient": 1.0},
        needs="tensor",
        one_part=lambda part, c, settings: tsv.tsv_merge(part.base, part.stack, c),
        one_coefficient=True,
    ),
    StaticMerge(
        name="iso_c",
        title="Iso-C",
        paper="2502.04959",
        result="the summed task vectors with all singular values at their mean",
        function=iso_c.iso_c,
        parameters={"coefficient": 1.0},
        needs="tensor",
        one_part=lambda part, c, settings: iso_c.iso_c(part.base, part.stack, c),
        one_coefficient=True,
    ),
)
STATIC_MERGES: dict[str, StaticMerge] = {row.name: row for row in _ROWS}
PARAMETERS = {name for row in _ROWS for name in row.parameters}
"""Names of the parameters of all merges."""


def in_words(row: StaticMerge) -> str:
    """One line of help: name, title and parameters with their defaults."""
    given = ", ".join(f"{name} {_word(value)}" for name, value in row.parameters.items())
    return f"{row.name} ({row.title}: {given or 'no parameters'})"


def as_markdown() -> str:
    """docs/methods/static_merges.md."""
    lines = [
        "# Static merges",
        "",
        "`algorithm` of a config with `method: merge` (configs/merging/merge_ties.yaml); the "
        "function is the",
        "one of `jaxmethods.merging` for trees in memory. An asterisk: masks are drawn from "
        "`seed`. A test holds that this page is",
        "`jaxmethods.merging.checkpoints.static_merges.as_markdown()`.",
        "",
    ]
    head = ["algorithm", "paper", "result", "parameters and defaults", "function"]
    rows = []
    for row in _ROWS:
        paper = f", [{row.paper}](https://arxiv.org/abs/{row.paper})" if row.paper else ""
        given = ", ".join(f"`{name}: {_word(value)}`" for name, value in row.parameters.items())
        cells = [f"`{row.name}`{'*' * row.random}", f"{row.title}{paper}", row.result, given]
        cells += [f"`{row.function.__name__}`", NEEDS[row.needs]]
        rows.append(cells)
    return "\n".join([*lines, markdown_table([*head, "an entry depends on"], rows)]) + "\n"


def _word(value: Any) -> str:
    """As in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
