"""Objectives of distillation by their names: settings of one loss and of where responses come from.

    sft        likelihood of the gold response
    seqkd      likelihood of the teacher's response     (Kim and Rush, arXiv 1606.07947)
    fkd, rkd   forward, reverse KL on the gold response, and likelihood
    kid        reverse KL on the imperfect response, and likelihood     (arXiv 2410.11371)
    imitkd     forward KL; the gold or the student's response, batch by batch (arXiv 2009.07253)
    f_distill  total variation; half the rows the teacher's, half the student's (arXiv 2307.15190)
    gkd        reverse KL on the student's responses    (arXiv 2306.13649); `gkd_forward` and
               `gkd_jsd` with the forward KL and the Jensen-Shannon divergence
    distillm   skew forward KL, adaptive off-policy responses           (arXiv 2402.03898)
    akl, dkd, atkd   see `language.divergences`; on the gold response, and likelihood

Likelihood of what the student itself wrote teaches nothing: where responses are the student's, its
weight is 0. Everything here is a default that a config may change.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

ObjectiveName = Literal[
    "sft",
    "seqkd",
    "fkd",
    "rkd",
    "kid",
    "imitkd",
    "f_distill",
    "gkd",
    "gkd_forward",
    "gkd_jsd",
    "distillm",
    "akl",
    "dkd",
    "atkd",
]


def _on(divergence: str, **source: Any) -> dict[str, Any]:
    """The divergence on whole responses: gold ones with their likelihood, or those of `source`."""
    loss: dict[str, Any] = {
        "divergence": {"name": divergence},
        "imperfect": {"rewrite": "vanilla"},
        "mle_weight": 0.0 if source else 1.0,
    }
    return {"loss": loss, "source": source} if source else {"loss": loss}


OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": _on("none"),
    "seqkd": _on("none") | {"source": {"teacher": 1.0}},
    "fkd": _on("forward_kl"),
    "rkd": _on("reverse_kl"),
    "kid": {},
    "imitkd": _on("forward_kl", student=0.5),
    "f_distill": _on("total_variation", student=0.5, teacher=0.5, unit="row"),
    "gkd": _on("reverse_kl", student=1.0),
    "gkd_forward": _on("forward_kl", student=1.0),
    "gkd_jsd": _on("jsd", student=1.0),
    "distillm": _on("skew_forward_kl", replay={}),
    "akl": _on("adaptive_kl"),
    "dkd": _on("decoupled"),
    "atkd": _on("atkd"),
}
assert set(OBJECTIVES) == set(get_args(ObjectiveName))
