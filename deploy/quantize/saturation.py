"""What 8-bit products lose on CPUs without 8-bit dot products, emulated exactly.

There ``vpmaddubsw`` multiplies uint8 codes of activations by int8 codes of weights and adds two neighbouring
products into an int16 that saturates; the pairs are then added in 32 bits. Which products are neighbours
depends on how a runtime packs what it sums over, K:

running   K runs over the kernel's positions and, innermost, the input channels of a group, and pairs are
          (0, 1), (2, 3), ... of that, even where a pair lies in two positions. ONNX Runtime (MLAS).
by-four   channels are filled up to a multiple of four at each position, so pairs stay inside one. OpenVINO
          (oneDNN), apart from its GEMM fallback for odd grouped convolutions.

Both are equal where channels come in multiples of two. Products of matrices have one position. Convolutions
with one input and one output channel a group widen to 16 bits first and never saturate. All of this was
checked bit for bit against the kernels of ONNX Runtime 1.31.1 (AVX2 and AVX-512, VNNI hidden from its CPUID)
and OpenVINO 2026.4.1 (``ONEDNN_MAX_CPU_ISA=AVX2`` and ``AVX512_CORE``), 2026-11-21.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.qdq import quantize_array
from deploy.quantize.assign import Assignment
from deploy.quantize.place import Placement
from deploy.quantize.seen import Run
from deploy.spec.profile import QuantRules

_LOW, _HIGH = -(2**15), 2**15 - 1
_ROWS = 64
"""Output positions looked at in each layer and batch."""
_PRODUCTS = 2**21
"""Pairs formed in each layer and batch, at most: beyond it fewer output channels are looked at."""


@dataclass
class Saturation:
    """``pairs`` were looked at and ``saturated`` left 16 bits; the powers are sums of squares of the error
    that this makes in the real-valued results, and of the exact results."""

    pairs: int = 0
    saturated: int = 0
    error_power: float = 0.0
    power: float = 0.0

    @property
    def share(self) -> float:
        """The part of all pairs that saturate."""
        return self.saturated / max(self.pairs, 1)

    @property
    def error(self) -> float:
        """Root mean square error of the result relative to its root mean square."""
        return float(np.sqrt(self.error_power / self.power)) if self.power > 0 else 0.0


def can_saturate(weight_limit: int) -> bool:
    """Whether two products of uint8 codes and weights in ``[-weight_limit, weight_limit]`` can leave int16.

    >>> can_saturate(127), can_saturate(64)
    (True, False)
    """
    return 2 * 255 * weight_limit > _HIGH


def pair_sums(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Exact sums of two neighbouring products, int32 ``[rows, pairs, outputs]``.

    ``codes`` are uint8 ``[rows, K]``, ``weights`` int8 ``[K, outputs]``; an odd K is filled up with zero.
    """
    odd = codes.shape[1] % 2
    left = np.pad(codes, ((0, 0), (0, odd))).astype(np.int32)
    right = np.pad(weights, ((0, odd), (0, 0))).astype(np.int32)
    sums: np.ndarray = left[:, 0::2, None] * right[None, 0::2] + left[:, 1::2, None] * right[None, 1::2]
    return sums


def saturated_product(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """``codes @ weights`` as such a CPU computes it, int32 ``[rows, outputs]``.

    >>> codes = np.array([[255, 255, 255, 1]], np.uint8)
    >>> weights = np.array([[127], [127], [-127], [1]], np.int8)
    >>> int(saturated_product(codes, weights)[0, 0])    # 64770 became 32767
    383
    """
    product: np.ndarray = np.clip(pair_sums(codes, weights), _LOW, _HIGH).sum(axis=1, dtype=np.int32)
    return product


def count(codes: np.ndarray, weights: np.ndarray, zero_point: int, scale: np.ndarray) -> Saturation:
    """What saturation does to ``(codes - zero_point) @ weights * scale``, with one ``scale`` per output."""
    sums = pair_sums(codes, weights)
    lost = np.clip(sums, _LOW, _HIGH) - sums
    exact = sums.sum(axis=1, dtype=np.int64) - zero_point * weights.astype(np.int64).sum(axis=0)
    return Saturation(
        pairs=sums.size,
        saturated=int(np.count_nonzero(lost)),
        error_power=float(np.square(lost.sum(axis=1) * scale).sum()),
        power=float(np.square(exact * scale).sum()),
    )


def emulate(
    placement: Placement, assignment: Assignment, rules: QuantRules, run: Run
) -> dict[str, Saturation]:
    """Saturation by name of the convolution or product, on the codes that the samples have there.

    A layer is looked at in `_ROWS` of its positions and as many of its channels as keep that cheap.
    """
    layers = dict(_layers(placement, assignment))
    found = {name: Saturation() for name in layers}
    wanted = sorted({layer.source for layer in layers.values()})
    if not wanted or rules.pairs == "exact" or rules.activation == "int16":
        return found
    offset = 128 if rules.activation == "int8" else 0  # kernels flip the sign bit of int8 activations
    for values in run(wanted):
        for name, layer in layers.items():
            params = assignment.tensors[layer.source]
            codes = quantize_array(values[layer.source], params).astype(np.int16) + offset
            zero = params.zero_point[0] + offset
            for rows, weights, scale in layer.products(codes, zero, rules.pairs == "by-four"):
                part, total = count(rows, weights, zero, scale), found[name]
                total.pairs += part.pairs
                total.saturated += part.saturated
                total.error_power += part.error_power
                total.power += part.power
    return found


@dataclass(frozen=True)
class _Layer:
    """A convolution or product: its weights' codes as the graph has them, and the scale of each output."""

    node: ir.Node
    source: str
    weights: np.ndarray
    scale: np.ndarray

    def products(
        self, codes: np.ndarray, zero: int, by_four: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Rows of K codes, weights ``[K, outputs]`` and their scales: one for each group of channels."""
        if self.node.op_type != "Conv":
            rows = _some(codes.reshape(-1, codes.shape[-1]), _ROWS)
            turned = self.node.attributes.get_int("transB", 0)
            yield _cheap(rows, self.weights.T if turned else self.weights, self.scale)
            return
        groups = self.node.attributes.get_int("group", 1)
        patches = _patches(codes, self.node, self.weights.shape[2:], zero)
        channels, outputs = codes.shape[1] // groups, len(self.weights) // groups
        fill = -channels % 4 if by_four else 0
        for group in range(groups):
            rows = patches[..., group * channels : (group + 1) * channels]
            own = slice(group * outputs, (group + 1) * outputs)
            kernel = np.moveaxis(self.weights[own], 1, -1)
            if fill:
                rows = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, fill)])
                kernel = np.pad(kernel, [(0, 0)] * (kernel.ndim - 1) + [(0, fill)])
            scale = self.scale if self.scale.size == 1 else self.scale[own]
            yield _cheap(rows.reshape(len(rows), -1), kernel.reshape(outputs, -1).T, scale)


def _layers(placement: Placement, assignment: Assignment) -> Iterator[tuple[str, _Layer]]:
    for name, uses in placement.weights.items():
        codes, plan = assignment.codes.get(name), assignment.tensors.get(name)
        for head, slot in uses:
            source = head.inputs[0]
            if codes is None or plan is None or source is None or source.name not in assignment.tensors:
                continue
            if plan.type != "int8":  # kernels for other weights widen first
                continue
            product = head.op_type in ("MatMul", "Gemm") and slot == 1 and codes.ndim == 2
            if (product and not head.attributes.get_int("transA", 0)) or _saturates(head, codes):
                scale = np.asarray(plan.scale) * assignment.tensors[source.name].scale[0]
                yield head.name or "", _Layer(head, source.name, codes, scale)


def _saturates(head: ir.Node, codes: np.ndarray) -> bool:
    """Whether a convolution adds pairs: not where a group is one channel in and one out."""
    if head.op_type != "Conv":
        return False
    return codes.shape[1] > 1 or len(codes) != head.attributes.get_int("group", 1)


def _patches(codes: np.ndarray, node: ir.Node, kernel: tuple[int, ...], zero: int) -> np.ndarray:
    """What the kernel sees at some of its places, ``[rows, kernel..., channels]``; padding is zero itself."""
    rank = len(kernel)
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(node, codes.shape[2:], spans, strides)
    padded = np.pad(codes, [(0, 0), (0, 0), *pads], constant_values=zero)
    axes = tuple(range(2, 2 + rank))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    steps = [slice(None, None, step) for step in (1, 1, *strides, *dilations)]
    windows = windows[tuple(steps)]
    places = np.moveaxis(windows, 1, -1)  # samples, positions..., kernel..., channels
    outer = places.shape[: 1 + rank]
    chosen = np.unravel_index(_places(int(np.prod(outer))), outer)
    return np.ascontiguousarray(places[chosen])


def _pads(
    node: ir.Node, sizes: tuple[int, ...], spans: list[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        needed = [
            max(0, (-(-size // step) - 1) * step + span - size)
            for size, span, step in zip(sizes, spans, strides, strict=True)
        ]
        halves = [(n // 2, n - n // 2) for n in needed]
        return halves if mode == "SAME_UPPER" else [(b, a) for a, b in halves]
    given = node.attributes.get_ints("pads", [0] * (2 * len(spans)))
    return list(zip(given[: len(spans)], given[len(spans) :], strict=True))


def _places(total: int) -> np.ndarray:
    """At most `_ROWS` places of ``total``, spread evenly."""
    return np.unique(np.linspace(0, total - 1, min(total, _ROWS)).astype(np.int64))


def _some(rows: np.ndarray, most: int) -> np.ndarray:
    return rows[_places(len(rows))] if len(rows) > most else rows


def _cheap(
    rows: np.ndarray, weights: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As many outputs, evenly spread, as `_PRODUCTS` allows."""
    most = max(1, 2 * _PRODUCTS // max(1, rows.size))
    if weights.shape[1] <= most:
        return rows, weights, scale
    chosen = np.linspace(0, weights.shape[1] - 1, most).astype(np.int64)
    return rows, weights[:, chosen], scale if scale.size == 1 else scale[chosen]


def worst(found: Mapping[str, Saturation]) -> list[tuple[str, Saturation]]:
    """The layers by the error that saturation makes, largest first."""
    return sorted(found.items(), key=lambda item: -item[1].error)
