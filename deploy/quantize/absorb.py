"""High-bias absorption (Nagel et al. 2019, "Data-Free Quantization", section 4.1.3).

What all values of a channel exceed moves from the bias of the layer that makes it into those of the layers
behind, so that codes need not cover it: Relu(x - c) = Relu(x) - c where x > c, and W(y - c) + (b + Wc) is
Wy + b. The paper takes c from the statistics of batch norm, three deviations below the mean; here it is seen
on data.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant
from deploy.quantize.bias import bias_array, bias_slot, set_bias
from deploy.quantize.channels import Channels, as_rows
from deploy.quantize.extents import Extent
from deploy.quantize.place import Placement
from deploy.quantize.rung import Step

_MARGIN = 0.125
"""Of a channel's range: so far below the smallest value seen a Relu is taken to be never reached."""


def absorb(
    model: ir.Model,
    placement: Placement,
    channels: Channels,
    factors: np.ndarray,
    seen: Mapping[str, Extent],
) -> list[Step]:
    """Shift channels of ``model`` in place, which was scaled by ``factors`` after ``seen`` was observed.

    Behind a Relu only as far as the smallest value seen less a margin, so that it stays exact on such data;
    with nothing between the layers it is exact everywhere. A layer that pads cannot take a shift.
    """
    heads = {head.name for uses in placement.weights.values() for head, _ in uses}
    steps = []
    for node in model.graph:
        if node.name not in heads or bias_slot(node) is None or node.op_type == "MatMul":
            continue
        value, straight = node.outputs[0], True
        readers = value.consumers()
        if len(readers) == 1 and readers[0].op_type == "Relu":
            value, straight = readers[0].outputs[0], False
            readers = value.consumers()
        name = value.name or ""
        ids = channels.values.get(name)
        if ids is None or name not in seen or name not in placement.groups or value.is_graph_output():
            continue
        if list(placement.groups.values()).count(placement.groups[name]) > 1 or not readers:
            continue
        if not all(n.name in heads and n.inputs[0] is value and _takes_shift(n) for n in readers):
            continue
        by = factors[np.maximum(ids, 0)].ravel()
        least, most = seen[name].least.min(axis=0) / by, seen[name].most.max(axis=0) / by
        margin = 0.0 if straight else _MARGIN * (most - least)
        shift = np.maximum(least - margin, 0.0) + (np.minimum(most, 0.0) if straight else 0.0)
        bias = bias_array(node)
        if bias is None or shift.size != bias.size:
            continue
        before, after = _range(least, most), _range(least - shift, most - shift)
        if after > 0.95 * before:
            continue
        set_bias(model, node, bias - shift)
        for reader in readers:
            weight, old = constant(reader.inputs[1]), bias_array(reader)
            assert weight is not None and old is not None
            rows = as_rows(reader, weight.astype(np.float64))
            group = reader.attributes.get_int("group", 1)
            read = shift.reshape(group, -1).repeat(len(rows) // group, axis=0)
            set_bias(model, reader, old + (rows.sum(axis=2) * read).sum(axis=1))
        # Noise is the square of the step, and the step follows the range.
        steps.append(Step(node.name or "", "high biases absorbed", before**2, after**2))
    return steps


def _range(least: np.ndarray, most: np.ndarray) -> float:
    """What codes for all channels have to cover."""
    return float(np.maximum(most, 0.0).max() - np.minimum(least, 0.0).min())


def _takes_shift(node: ir.Node) -> bool:
    if node.op_type == "Gemm":
        return bias_slot(node) is not None and node.attributes.get_float("alpha", 1.0) == 1.0
    padded = any(node.attributes.get_ints("pads", ())) or node.attributes.get_string(
        "auto_pad", "NOTSET"
    ) not in ("NOTSET", "VALID")
    return node.op_type == "Conv" and not padded and bias_slot(node) is not None
