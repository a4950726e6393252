"""Model merging."""

from jaxmethods.merging.arithmetic import analogy, average, model_stock, slerp, task_arithmetic
from jaxmethods.merging.fisher import fisher_diagonal, fisher_merge
from jaxmethods.merging.competition import pcb
from jaxmethods.merging.regression import gram, regmean
from jaxmethods.merging.sparsify import (
    breadcrumbs,
    concrete_mask,
    dare,
    dare_mask,
    dare_ties,
    dare_with_mask,
    della,
    magnitude_prune,
)
from jaxmethods.merging.spectral import iso_c, tsv_merge
from jaxmethods.merging.sign_election import ties, ties_split
from jaxmethods.merging.trees import (
    apply_task_vectors,
    check_finite,
    coefficients_by_name,
    combine,
    stack_trees,
    task_vectors,
)
