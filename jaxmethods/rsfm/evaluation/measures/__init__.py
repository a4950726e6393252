"""How well images are classified, retrieved, segmented and searched for objects."""

from __future__ import annotations

from jaxmethods.rsfm.evaluation.measures import classification, detection, retrieval, segmentation

__all__ = ["classification", "detection", "retrieval", "segmentation"]
