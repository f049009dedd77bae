"""How far a network's outputs moved, without labels: KL divergence of class probabilities, signal over noise.

What a final Softmax, Sigmoid or ArgMax reads is compared, not what it makes: probabilities in float32 have
lost what tells a sure network from a very sure one, and class numbers everything but the winner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from deploy.errors import UnsupportedError
from deploy.graph.ends import scores
from deploy.spec.sensitivity import Effect

Kind = Literal["classes", "each", "values"]
"""One class of several; a yes or no for each class; numbers."""

_KEEPS = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "ArgMax")
CERTAIN = 1e-7
_HEADS: Mapping[str, Kind] = {"Softmax": "classes", "LogSoftmax": "classes", "Sigmoid": "each"}


@dataclass(frozen=True)
class Head:
    """An output and the value ``read`` in its place, whose ``axis`` counts classes.

    ``chances`` says that what is read for a yes or no are probabilities after all.
    """

    output: str
    read: str
    kind: Kind
    axis: int = -1
    chances: bool = False

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Float64 of what was read: (positions, classes) of scores, any shape of logits or of numbers."""
        wide = values.astype(np.float64)
        if self.kind == "values":
            return wide
        if self.kind == "each":
            return np.asarray(_logit(wide) if self.chances else wide)
        flat = np.moveaxis(wide, self.axis, -1).reshape(-1, wide.shape[self.axis])
        return np.asarray(flat - flat.mean(axis=1, keepdims=True))


def heads(model: ir.Model) -> tuple[Head, ...]:
    """What is compared, an entry for each output of floats or of class numbers.

    An output of two axes whose end does not tell is taken for scores of classes, as training takes it. Raises
    UnsupportedError where all outputs are whole numbers of another kind.
    """
    found = [head for value in model.graph.outputs if (head := _head(value)) is not None]
    if not found:
        raise UnsupportedError(
            "the model puts out whole numbers only: nothing says how far they moved",
            hint="cut the model before they are made from floats",
        )
    return tuple(found)


def measure_of(compared: Sequence[Head]) -> Literal["classes", "values"]:
    """Whether all outputs are class scores, so that there is a divergence of probabilities."""
    return "values" if any(head.kind == "values" for head in compared) else "classes"


def _head(output: ir.Value) -> Head | None:
    name = output.name or ""
    if output.dtype is None or not output.dtype.is_floating_point():
        return _classes_before(output, name)
    node = output.producer()
    while node is not None and node.op_type in _KEEPS[:-1] and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is not None and node.op_type in _HEADS and node.inputs[0] is not None:
        axis = node.attributes.get_int("axis", -1)
        return Head(name, node.inputs[0].name or "", _HEADS[node.op_type], axis)
    if scores(output) == "each":
        return Head(name, name, "each", chances=True)
    rank = None if output.shape is None else output.shape.rank()
    if rank == 2 and output.shape is not None and output.shape[1] != 1:
        return Head(name, name, "classes")
    return Head(name, name, "values")


def _classes_before(output: ir.Value, name: str) -> Head | None:
    """What the ArgMax behind an output of class numbers reads."""
    node, axis = output.producer(), None
    while node is not None and node.op_type in _KEEPS and node.inputs[0] is not None:
        source = node.inputs[0]
        if node.op_type == "ArgMax":
            axis = node.attributes.get_int("axis", 0)
            before = source.producer()
            if before is not None and before.op_type in ("Softmax", "LogSoftmax"):
                source = before.inputs[0] or source
            return Head(name, source.name or "", "classes", axis)
        node = source.producer()
    return None


@dataclass
class Moved:
    """What is summed up over batches: by head, the divergence, how many samples or positions it is of, and
    the powers of signal and noise."""

    heads: Sequence[Head]
    divergence: float = 0.0
    counts: int = 0
    signal: np.ndarray = field(init=False)
    noise: np.ndarray = field(init=False)
    ruined: bool = False

    def __post_init__(self) -> None:
        self.signal, self.noise = np.zeros(len(self.heads)), np.zeros(len(self.heads))

    def add(self, wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
        """Count one batch: the float network's values and the treated one's, by the names that heads read."""
        for index, head in enumerate(self.heads):
            got = found[head.read]
            if not np.isfinite(got).all():
                self.ruined = True
                continue
            want = wanted[head.read]
            a, b = head.scores(want), head.scores(got)
            self.signal[index] += np.square(a).sum()
            self.noise[index] += np.square(b - a).sum()
            if head.kind != "values":
                self.divergence += _kl(a, b, head.kind) * len(want)
                self.counts += len(want) if index == 0 else 0

    def effect(self) -> Effect:
        """The figures over everything added."""
        if self.ruined:
            return Effect(ruined=True, measured=True)
        kl = max(0.0, self.divergence / max(self.counts, 1)) if measure_of(self.heads) == "classes" else None
        lost = float(np.mean(self.noise / np.maximum(self.signal, 1e-30)))
        return Effect(kl=kl, sqnr_db=-10 * math.log10(lost) if lost else None, measured=True)


def _kl(a: np.ndarray, b: np.ndarray, kind: Kind) -> float:
    """KL divergence in nats from scores ``a`` to ``b``: the mean over rows; of yes-or-no classes, the sum
    over those of a sample, whose axis is the first."""
    if kind == "each":
        p = 1 / (1 + np.exp(-a))
        total = p * (_log_sigmoid(a) - _log_sigmoid(b)) + (1 - p) * (_log_sigmoid(-a) - _log_sigmoid(-b))
        return float(total.sum() / len(a))
    log_p, log_q = _log_softmax(a), _log_softmax(b)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def _log_softmax(a: np.ndarray) -> np.ndarray:
    shifted = a - a.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _log_sigmoid(a: np.ndarray) -> np.ndarray:
    return np.asarray(-np.logaddexp(0, -a))


def _logit(p: np.ndarray) -> np.ndarray:
    held = np.clip(p, CERTAIN, 1 - CERTAIN)
    return np.asarray(np.log(held) - np.log1p(-held))
