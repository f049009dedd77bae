"""What in the weights makes 8 bits or float16 lose accuracy: dead, unlike and outlying channels, huge biases.

Weights are looked at as they will be quantized, with a following batch norm folded in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant, constant_tensor, sole_consumer

Severity = Literal["note", "warning"]
Finding = tuple[str, str, Severity]
"""Kind and text of a hazard, and how much it matters."""
Findings = Iterator[Finding]

DEPTHWISE_RATIO = 16.0
"""Largest over smallest channel, depthwise: beyond it one scale for all leaves the smallest 8 levels."""
OUTLIER_CHANNEL = 8.0
"""Largest over median channel: beyond it one scale for all costs the median channel three bits."""
OUTLIER_WEIGHT = 30.0
"""Largest weight of a channel over its root mean square: beyond it the usual weight has four levels."""
SMALLEST_INPUT_SCALE = 1e-3
"""A bias that fits int32 only with coarser inputs is reported; 1e-3 is a range of 0.26 in 8 bits."""
FLOAT16_MAX, FLOAT16_MIN = 65504.0, 2.0**-24


def of_weights(node: ir.Node) -> Findings:
    """Dead, unlike and outlying channels, and biases too large for their weights."""
    folded = _folded(node)
    if folded is None:
        return
    rows, bias = folded
    peak = np.abs(rows).max(axis=1)
    if peak.size == 0 or not np.isfinite(peak).all() or not peak.any():
        return
    alive = peak > peak.max() * 2.0**-24
    if not alive.all():
        yield (
            "dead-channel",
            f"{_some(~alive)} of {peak.size} output channels have no weights and only pass their bias on: "
            "prune them",
            "note",
        )
    living = peak[alive]
    ratio = float(living.max() / living.min())
    typical = float(living.max() / np.median(living))
    if _is_depthwise(node) and ratio > DEPTHWISE_RATIO:
        yield (
            "depthwise-range",
            f"its channels' ranges differ {ratio:.0f} times, so one scale for all leaves the smallest "
            f"{max(1, round(127 / ratio))} levels: use scales per channel, or equalize first",
            "warning" if ratio > 127 else "note",
        )
    elif typical > OUTLIER_CHANNEL:
        yield (
            "outlier-channel",
            f"channel {int(peak.argmax())} reaches {typical:.0f} times as far as the median channel, so "
            f"one scale for all wastes {np.log2(typical):.1f} bits: use scales per channel",
            "note",
        )
    rms = np.sqrt(np.mean(np.square(rows[alive]), axis=1))
    lone = float((living / rms).max())
    if lone > OUTLIER_WEIGHT:
        yield (
            "outlier-weight",
            f"one weight is {lone:.0f} times its channel's root mean square, which leaves the others "
            f"{127 / lone:.1f} levels: clip by error (observer mse), or keep it float",
            "warning",
        )
    if bias is not None:
        # int32 holds bias / (input scale * weight scale), the weight scale being peak / 127.
        used = peak > 0
        smallest = np.abs(bias[used]) * 127.0 / (peak[used] * 2.0**31)
        if smallest.size and float(smallest.max()) > SMALLEST_INPUT_SCALE:
            channel = int(np.flatnonzero(used)[smallest.argmax()])
            yield (
                "bias-overflow",
                f"the bias of channel {channel} overflows int32 with an input scale below "
                f"{smallest.max():.2g}, as its weights reach only {peak[channel]:.2g}: prune the channel, "
                "or bound its weight scale from below",
                "warning",
            )


def of_batch_norm(node: ir.Node) -> Findings:
    """Channels that a tiny variance blows up."""
    if node.op_type != "BatchNormalization":
        return
    scale, variance = constant(node.inputs[1]), constant(node.inputs[4])
    if scale is None or variance is None:
        return
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    factor = np.abs(scale.astype(np.float64)) / np.sqrt(variance.astype(np.float64) + epsilon)
    tiny = (variance < epsilon) & (factor > 10 * np.median(factor))
    if tiny.any():
        yield (
            "small-variance",
            f"{_some(tiny)} of {tiny.size} channels hardly vary, so folding multiplies their weights by up "
            f"to {factor[tiny].max():.3g}: quantize per channel, or prune them",
            "warning",
        )


def of_half_precision(node: ir.Node, checked: set[ir.Value]) -> Findings:
    """Constants that float16 cannot hold, each at its first reader. Infinities it can; batch norms go."""
    if node.op_type == "BatchNormalization":
        return
    for value in node.inputs:
        tensor = constant_tensor(value)
        if value is None or tensor is None or value in checked:
            continue
        checked.add(value)
        if tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16):
            continue
        magnitude = np.abs(tensor.numpy().astype(np.float64))
        largest = float(magnitude.max(initial=0.0, where=np.isfinite(magnitude)))
        if largest > FLOAT16_MAX:
            yield (
                "float16-overflow",
                f"'{value.name}' reaches {largest:.3g}, beyond float16's 65504, and would become infinite: "
                "keep it float32, or bound it",
                "warning",
            )
        lost = np.count_nonzero((magnitude > 0) & (magnitude < FLOAT16_MIN))
        if lost > 0.01 * tensor.size:
            yield (
                "float16-underflow",
                f"{lost} of {tensor.size} numbers of '{value.name}' lie below float16's 6e-8 and would "
                "become 0: harmless in weights, not in divisors",
                "note",
            )
    epsilon = node.attributes.get_float("epsilon", 1.0)
    if 0 < epsilon < FLOAT16_MIN:
        yield (
            "float16-underflow",
            f"its epsilon {epsilon:.1g} is 0 in float16, so a constant input divides by zero: keep it "
            "float32",
            "warning",
        )


def _folded(node: ir.Node) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Weights as [output channels, rest] and bias, a following batch norm folded in; None if not constant."""
    if len(node.inputs) < 2 or node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        return None
    weight = constant(node.inputs[1])
    if weight is None or not np.issubdtype(weight.dtype, np.floating) or weight.ndim < 2 or weight.size == 0:
        return None
    rows = _rows(node, weight.astype(np.float64))
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    after = sole_consumer(node.outputs[0])
    if bias is None and after is not None and after.op_type == "Add":
        bias = next((c for v in after.inputs if (c := constant(v)) is not None), None)
    offset = bias.astype(np.float64).reshape(-1) if bias is not None and bias.size == len(rows) else None
    if after is not None and after.op_type == "BatchNormalization":
        given = [constant(v) for v in after.inputs[1:5]]
        scale, shift, mean, variance = (None if c is None else c.astype(np.float64) for c in given)
        if scale is None or shift is None or mean is None or variance is None or scale.size != len(rows):
            return rows, offset
        factor = scale / np.sqrt(variance + after.attributes.get_float("epsilon", 1e-5))
        return rows * factor[:, None], shift + factor * ((0.0 if offset is None else offset) - mean)
    return rows, offset


def _rows(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    if node.op_type == "Conv":
        return weight.reshape(len(weight), -1)
    if node.op_type == "ConvTranspose":  # [C, M / groups, kernel...]; group by group, M channels come out
        groups = node.attributes.get_int("group", 1)
        split = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        return split.transpose(0, 2, 1, 3).reshape(groups * weight.shape[1], -1)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        return weight
    return np.moveaxis(weight, -1, 0).reshape(weight.shape[-1], -1)


def _is_depthwise(node: ir.Node) -> bool:
    weight = constant_tensor(node.inputs[1])
    groups = node.attributes.get_int("group", 1)
    return node.op_type == "Conv" and groups > 1 and weight is not None and weight.shape[1] == 1


def _some(chosen: np.ndarray) -> str:
    """``3 (channels 1, 5, 9)``; the first four where there are more."""
    indices: list[int] = np.flatnonzero(chosen).tolist()
    listed = ", ".join(map(str, indices[:4])) + (", ..." if len(indices) > 4 else "")
    return f"{len(indices)} (channel{'s' if len(indices) > 1 else ''} {listed})"
