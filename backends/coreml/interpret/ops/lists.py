"""Lists of tensors, and the choice of boxes that overlap little."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Operand, Refused, sized
from backends.coreml.interpret.ops.elementwise import DTYPES

_LONGEST = 2**20


def make_list(call: Call) -> Operand:
    """Zeros of the shape of an element, which is empty where it is not known yet."""
    length, name = call.integer("init_length", 1), call.text("dtype", "fp32")
    if not 0 <= length <= _LONGEST or name not in DTYPES:
        raise Refused(f"a list of {length} elements of {name}")
    shape: list[int] = []
    for size in call.operands("elem_shape") if call.has("elem_shape") else ():
        if isinstance(size, np.ndarray) and size.dtype.kind in "iu":
            shape += [int(n) for n in size.reshape(-1)]
    element: np.ndarray = np.zeros(sized(shape), DTYPES[name])
    return (element,) * length


def list_length(call: Call) -> np.ndarray:
    return np.array(len(call.listed("ls")), np.int32)


def list_write(call: Call) -> Operand:
    return _written(call.listed("ls"), [call.integer("index")], [call.array("value")])


def _written(ls: tuple[np.ndarray, ...], places: list[int], values: list[np.ndarray]) -> Operand:
    found = list(ls)
    for place, value in zip(places, values, strict=True):
        if not -len(found) <= place < _LONGEST:
            raise Refused(f"place {place} of a list of {len(found)}")
        found += [np.zeros_like(value)] * (place + 1 - len(found))
        found[place] = value
    return tuple(found)


def list_read(call: Call) -> np.ndarray:
    return call.listed("ls")[call.integer("index")]


def list_gather(call: Call) -> np.ndarray:
    ls = call.listed("ls")
    return np.stack([ls[place] for place in call.integers("indices")])


def list_scatter(call: Call) -> Operand:
    return _written(call.listed("ls"), call.integers("indices"), list(call.array("value")))


def non_maximum_suppression(call: Call) -> tuple[np.ndarray, ...]:
    """Boxes in the order of their best scores, none that overlaps a better one by more than the threshold.

    iOS 17 has the boxes last and says neither a least score nor how many there are.
    """
    new = not call.has("score_threshold")
    boxes, scores = call.array("boxes"), call.array("scores")
    if boxes.ndim != 3 or scores.ndim != 3:
        raise Refused(f"boxes {list(boxes.shape)}, scores {list(scores.shape)}")
    if new:
        boxes, scores = boxes.swapaxes(1, 2), scores.swapaxes(1, 2)
    if boxes.shape[2] != 4 or boxes.shape[:2] != scores.shape[:2]:
        raise Refused(f"boxes {list(boxes.shape)}, scores {list(scores.shape)}")
    most, least = call.integer("max_boxes"), -np.inf if new else call.number("score_threshold")
    n, classes = boxes.shape[0], scores.shape[2]
    sized([n, most, 4 + classes])
    chosen = np.zeros((n, most, 4), boxes.dtype), np.zeros((n, most, classes), scores.dtype)
    places, counts = np.full((n, most), -1, np.int32), np.zeros(n, np.int32)
    per_class, iou = call.flag("per_class_suppression"), call.number("iou_threshold")
    for image in range(n):
        kept = _chosen(boxes[image], scores[image], iou, least, most, per_class)
        counts[image] = len(kept)
        chosen[0][image, : len(kept)] = boxes[image, kept]
        chosen[1][image, : len(kept)] = scores[image, kept]
        places[image, : len(kept)] = kept
    if new:
        return chosen[0].swapaxes(1, 2), chosen[1].swapaxes(1, 2), places
    return (*chosen, places, counts)


def _chosen(
    boxes: np.ndarray, scores: np.ndarray, iou: float, least: float, most: int, per_class: bool
) -> list[int]:
    best, label = scores.max(axis=1), scores.argmax(axis=1)
    half = boxes[:, 2:] / 2
    low, high = boxes[:, :2] - half, boxes[:, :2] + half
    area = np.prod(high - low, axis=1)
    left = [int(i) for i in np.argsort(-best, kind="stable") if best[i] >= least]
    kept: list[int] = []
    rest = np.array(left, np.int64)
    while rest.size and len(kept) < most:
        first, rest = int(rest[0]), rest[1:]
        kept.append(first)
        both = np.minimum(high[first], high[rest]) - np.maximum(low[first], low[rest])
        shared = np.prod(np.maximum(both, 0), axis=1)
        overlap = shared / np.maximum(area[first] + area[rest] - shared, 1e-12)
        other = (label[rest] != label[first]) if per_class else np.zeros(rest.size, np.bool_)
        rest = rest[(overlap <= iou) | other]
    return kept


KERNELS: Mapping[str, Kernel] = {
    "make_list": make_list, "list_length": list_length, "list_write": list_write, "list_read": list_read,
    "list_gather": list_gather, "list_scatter": list_scatter,
    "non_maximum_suppression": non_maximum_suppression,
}  # fmt: skip
