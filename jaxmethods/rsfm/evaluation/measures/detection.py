r"""Average precision of detected boxes, on the host.

A detection is right if it overlaps an object of its image by at least a threshold that no surer
detection has claimed. AP is the area under the precision's upper envelope (VOC, all points) or its
mean at 101 recalls (COCO). Boxes are (x0, y0, x1, y1), or polygons of corners [4, 2] for rotated
ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

Overlap = Callable[[np.ndarray, np.ndarray], np.ndarray]


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of upright boxes.

    Args:
        first: [N, 4] x0, y0, x1, y1.
        second: [M, 4].

    Returns:
        [N, M] float64.
    """
    first, second = (np.asarray(own, float) for own in (first, second))  # bytes would wrap around
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=-1)
    area = [np.prod(np.maximum(own[:, 2:] - own[:, :2], 0), axis=-1) for own in (first, second)]
    union = area[0][:, None] + area[1][None] - shared
    return shared / np.where(union > 0, union, 1.0)  # boxes of 0.1 m are 1e-12 square degrees


def polygon_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of convex polygons.

    Args:
        first: [N, P, 2] corners in order.
        second: [M, Q, 2].

    Returns:
        [N, M] float64.
    """
    found = np.zeros((len(first), len(second)))
    # Bytes would wrap around, and areas far from the origin lose their digits in half the bits.
    for row, box in enumerate(np.asarray(first, float)):
        one = box - box[0]
        for column, far in enumerate(np.asarray(second, float)):
            other = far - box[0]
            shared = _area(_clip(_counterclockwise(one), _counterclockwise(other)))
            union = _area(one) + _area(other) - shared
            found[row, column] = shared / (union if union > 0 else 1.0)
    return found


def average_precision(
    boxes: np.ndarray,
    scores: np.ndarray,
    image: np.ndarray,
    truth: np.ndarray,
    truth_image: np.ndarray,
    *,
    threshold: float = 0.5,
    points: Literal["all", "101"] = "all",
    overlap: Overlap = box_iou,
) -> float:
    """AP of one class.

    Args:
        boxes: [N, ...] detections.
        scores: [N].
        image: [N] index of a detection's image.
        truth: [M, ...] objects.
        truth_image: [M].
        threshold: smallest overlap.
        points: of the curve: all, or 101 recalls.
        overlap: of detections and objects.

    Returns:
        AP between 0 and 1; NaN without objects.
    """
    if not len(truth):
        return float("nan")
    boxes, truth = np.asarray(boxes), np.asarray(truth)
    image, truth_image = np.asarray(image), np.asarray(truth_image)
    claimed = np.zeros(len(truth), bool)
    right = np.zeros(len(boxes), bool)
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    for rank, place in enumerate(order):
        own = np.flatnonzero(truth_image == image[place])
        if not len(own):
            continue
        # NaN, of a box that is none, would be the largest.
        shared = np.nan_to_num(overlap(boxes[place][None], truth[own])[0], nan=-1.0)
        if points == "101":  # COCO looks among objects that are free
            shared = np.where(claimed[own], -1.0, shared)
        best = int(np.argmax(shared))
        if shared[best] >= threshold and not claimed[own[best]]:
            claimed[own[best]] = right[rank] = True
    recall = np.cumsum(right) / len(truth)
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if points == "all":
        return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean(np.append(envelope, 0.0)[places]))


def coco_average_precision(*arguments: np.ndarray, overlap: Overlap = box_iou) -> float:
    """The mean of AP at overlaps of 0.5, 0.55, ..., 0.95, at 101 recalls.

    Args:
        arguments: boxes, scores, image, truth, truth_image of `average_precision`.
        overlap: of detections and objects.

    Returns:
        AP between 0 and 1.
    """
    thresholds = np.linspace(0.5, 0.95, 10)
    return float(
        np.mean(
            [
                average_precision(*arguments, threshold=own, points="101", overlap=overlap)
                for own in thresholds
            ]
        )
    )


def _area(polygon: np.ndarray) -> float:
    if len(polygon) < 3:
        return 0.0
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _counterclockwise(polygon: np.ndarray) -> np.ndarray:
    x, y = polygon.T
    turn = np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))
    return polygon if turn >= 0 else polygon[::-1]


def _clip(subject: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Sutherland and Hodgman: what of a convex polygon lies in another one."""
    kept = [tuple(corner) for corner in subject]
    for start, end in zip(window, np.roll(window, -1, axis=0), strict=True):
        corners, kept = kept, []
        sides = [_side(start, end, corner) for corner in corners]
        for place, corner in enumerate(corners):
            after = (place + 1) % len(corners)
            if sides[place] >= 0:
                kept.append(corner)
            if sides[place] * sides[after] < 0:
                part = sides[place] / (sides[place] - sides[after])
                kept.append(tuple(np.add(corner, part * np.subtract(corners[after], corner))))
    return np.array(kept).reshape(-1, 2)


def _side(start: np.ndarray, end: np.ndarray, point: tuple[float, ...]) -> float:
    edge, own = np.subtract(end, start), np.subtract(point, start)
    return float(edge[0] * own[1] - edge[1] * own[0])
