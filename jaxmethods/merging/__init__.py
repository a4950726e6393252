"""Model merging: one model out of several fine-tuned from the same base.

| function | what it needs besides the experts |
| --- | --- |
| `average`, `task_arithmetic`, `ties`, `dare`, `pcb`, `model_stock`, `slerp`, ... | nothing |
| `fisher_merge`, `regmean` | statistics of a few inputs |
| `adamerging`, `wemoe` (WEMoE, E-WEMoE), `surgery` (Surgery, SurgeryV2) | unlabeled test inputs |

Static merges are pure functions of trees, experts stacked on a leading axis:

    from jaxmethods import merging
    stack = merging.stack_trees([expert_a, expert_b, expert_c])
    merged = merging.ties(base, stack, density=0.2, coefficients=0.3)

`static_merges` lists them with papers and parameters; `streaming.merge_checkpoints` merges model
folders that don't fit in memory together, and so does `jaxmethods run` with `method: merge`.

What is adapted at test time is a `Method`: `init(key, batch)` and `step(state, batch)`. Papers and
equations are named in the modules: `arithmetic`, `ties`, `dare`, `breadcrumbs`, `della`,
`magnitude`, `concrete`, `pcb`, `fisher`, `regmean`, `tsv`, `iso_c`, `adamerging`, `routers`,
`merged_modules`, `wemoe`, `surgery`, `analysis`.
"""

from jaxmethods.merging import analysis
from jaxmethods.merging.adaptive import (
    adamerging,
    adaptation,
    merged_modules,
    routers,
    surgery,
    wemoe,
)
from jaxmethods.merging.config import AdaMergingConfig as AdaMergingConfig
from jaxmethods.merging.config import SurgeryConfig as SurgeryConfig
from jaxmethods.merging.config import WEMoEConfig as WEMoEConfig
from jaxmethods.merging.config import ewemoe
from jaxmethods.merging.static.arithmetic import (
    analogy,
    average,
    model_stock,
    slerp,
    task_arithmetic,
)
from jaxmethods.merging.static.breadcrumbs import breadcrumbs
from jaxmethods.merging.static.concrete import concrete_mask
from jaxmethods.merging.static.dare import dare, dare_mask, dare_ties, dare_with_mask
from jaxmethods.merging.static.della import della
from jaxmethods.merging.static.fisher import fisher_diagonal, fisher_merge
from jaxmethods.merging.static.iso_c import iso_c
from jaxmethods.merging.static.magnitude import magnitude_prune
from jaxmethods.merging.static.pcb import pcb
from jaxmethods.merging.static.regmean import gram, regmean
from jaxmethods.merging.static.ties import ties, ties_split
from jaxmethods.merging.static.trees import (
    apply_task_vectors,
    check_finite,
    coefficients_by_name,
    combine,
    stack_trees,
    task_vectors,
)
from jaxmethods.merging.static.tsv import tsv_merge

__all__ = [
    "adamerging",
    "adaptation",
    "analogy",
    "analysis",
    "apply_task_vectors",
    "average",
    "breadcrumbs",
    "check_finite",
    "coefficients_by_name",
    "combine",
    "concrete_mask",
    "dare",
    "dare_mask",
    "dare_ties",
    "dare_with_mask",
    "della",
    "ewemoe",
    "fisher_diagonal",
    "fisher_merge",
    "gram",
    "iso_c",
    "magnitude_prune",
    "merged_modules",
    "model_stock",
    "pcb",
    "regmean",
    "routers",
    "slerp",
    "stack_trees",
    "surgery",
    "task_arithmetic",
    "task_vectors",
    "ties",
    "ties_split",
    "tsv_merge",
    "wemoe",
]
