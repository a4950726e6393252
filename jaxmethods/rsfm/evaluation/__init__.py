"""How frozen features are judged: neighbors, probes, named protocols, intervals, maps."""

from __future__ import annotations

from jaxmethods.rsfm.evaluation import (
    baselines,
    bootstrap,
    fewshot,
    finetune,
    fpn,
    measures,
    neighbors,
    probes,
    protocols,
    segmenter,
    tiles,
)

__all__ = [
    "baselines",
    "bootstrap",
    "fewshot",
    "finetune",
    "fpn",
    "measures",
    "neighbors",
    "probes",
    "protocols",
    "segmenter",
    "tiles",
]
