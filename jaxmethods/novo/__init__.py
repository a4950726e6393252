"""NoVo: multiple-choice questions answered by the norms of attention heads.

For each candidate, "prompt candidate" is run once through a frozen decoder; a head votes for the
candidate at whose last token its output has the largest (or, for other heads, the smallest) norm.
Which heads vote is found with 30 labeled questions: no gradients, no sampling, no logits.

Ho et al., "NoVo: Norm Voting off Hallucinations with Attention Heads in Large Language Models",
ICLR 2025, arXiv 2410.08970.

    from jaxmethods import novo
    from jaxmethods.models import decoder
    config, params = decoder.load("path/to/model")
    scores = novo.score(params, config, sequences)     # token ids of every question's candidates
    voters = novo.fit(scores.norms[:30], scores.mask[:30], labels[:30])
    answers = novo.predict(scores.norms[30:], scores.mask[30:], voters)

`heads` selects and votes, `tree` and `norms` run what candidates share only once, `resample` asks
how much the 30 questions matter, `baselines` what else the norms or the likelihood would say,
`finetune` is the head for encoders that are trained, `misconceptions` a small world to show it on.
"""

from jaxmethods.novo import (
    baselines,
    finetune,
    heads,
    misconceptions,
    norms,
    resample,
    tree,
)
from jaxmethods.novo.heads import Heads as Heads
from jaxmethods.novo.heads import (
    correct_counts,
    fit,
    heads_from_indices,
    heads_from_json,
    heads_to_json,
    predict,
    select_heads,
    vote,
)
from jaxmethods.novo.resample import bootstrap, transfer
from jaxmethods.novo.score import Scores as Scores
from jaxmethods.novo.score import score
from jaxmethods.novo.tree import build_tree

__all__ = [
    "baselines",
    "bootstrap",
    "build_tree",
    "correct_counts",
    "finetune",
    "fit",
    "heads",
    "heads_from_indices",
    "heads_from_json",
    "heads_to_json",
    "misconceptions",
    "norms",
    "predict",
    "resample",
    "score",
    "select_heads",
    "transfer",
    "tree",
    "vote",
]
