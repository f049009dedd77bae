"""Batch norm put back where it was folded away, without changing what the graph computes.

Training without batch norm needs a learning rate about ten times smaller and gives the same accuracy in the
end (measured on a ResNet-20): it buys stability, nothing else. With the mean m and variance v of a
convolution's output over data, per channel,

    Conv(x)  =  BatchNorm(Conv'(x); scale = sqrt(v + eps), bias = m, mean = m, var = v)

exactly, since scale * (z - m) / sqrt(v + eps) + m = z. The convolution's own bias moves into the mean.
Filters are scaled to one norm besides, which batch norm takes back: then one learning rate suits all of them.
Afterwards the usual folding (`deploy/graph/affine.py`) undoes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant, fresh_name, is_constant, names, replace_weight

_EPSILON = 1e-5
_NORM = np.sqrt(2.0)
"""Of a filter after scaling, as He initialisation gives it (He et al. 2015)."""


@dataclass(frozen=True)
class Moments:
    """Mean and variance per channel of one value over data, both of shape [channels], float64."""

    mean: np.ndarray
    variance: np.ndarray


def foldable(model: ir.Model, meant: Callable[[str], bool] = lambda _: True) -> list[str]:
    """Outputs of convolutions behind which batch norm may stand and does not, in graph order.

    Their weights are constants that nobody else reads, since they are scaled, and ``meant`` by their names.
    """
    return [
        node.outputs[0].name or ""
        for node in model.graph
        if _may_be_normalised(node) and meant(_name(node.inputs[1]))
    ]


def _may_be_normalised(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain != "":
        return False
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if (
        weight is None
        or not is_constant(weight)
        or len(weight.uses()) != 1
        or weight.dtype != ir.DataType.FLOAT
    ):
        return False
    if bias is not None and not is_constant(bias):
        return False
    output = node.outputs[0]
    readers = {reader.op_type for reader in output.consumers()}
    return "BatchNormalization" not in readers and not output.is_graph_output()


def reinsert(model: ir.Model, moments: Mapping[str, Moments]) -> ir.Model:
    """A copy with batch norm behind the convolutions whose outputs ``moments`` names (see :func:`foldable`).

    Outputs and weights keep their names, and batch norm's bias bears that of the convolution's, whose part it
    takes: what names weights means the same ones as before. The graph computes the same up to float32
    rounding.
    """
    copy = model.clone()
    taken = names(copy)
    for node in list(copy.graph):
        name = node.outputs[0].name if len(node.outputs) == 1 else None
        if name is not None and name in moments and _may_be_normalised(node):
            _normalise(copy, node, moments[name], taken)
    return copy


def _normalise(model: ir.Model, node: ir.Node, found: Moments, taken: set[str]) -> None:
    weight = constant(node.inputs[1])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    assert weight is not None and node.graph is not None
    old = node.outputs[0]
    stem, shift = node.name or "conv", _bias_name(node)
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    norm = np.sqrt((flat**2).sum(axis=1))
    factor = np.where(norm > 0, _NORM / np.where(norm > 0, norm, 1.0), 1.0)
    own = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    mean, variance = (found.mean - own) * factor, found.variance * factor**2
    replace_weight(model, node, 1, (flat * factor[:, None]).reshape(weight.shape))
    name = _name(node.inputs[1])
    parts = {
        f"{name}/scale": np.sqrt(variance + _EPSILON) / factor,
        shift or f"{name}/shift": found.mean,
        f"{name}/mean": mean,
        f"{name}/variance": variance,
    }
    _drop_bias(model, node, taken)
    constants = [
        add_initializer(model, part, array.astype(np.float32), taken) for part, array in parts.items()
    ]
    output = ir.Value(name=None, type=old.type, shape=old.shape)
    norm_node = ir.node(
        "BatchNormalization",
        [old, *constants],
        attributes={"epsilon": _EPSILON},
        name=fresh_name(model, f"{stem}/norm", taken),
        outputs=[output],
    )
    kept = old.name
    old.name = fresh_name(model, f"{stem}/raw", taken)
    output.name = kept
    node.graph.insert_after(node, norm_node)
    old.replace_all_uses_with(output)
    norm_node.replace_input_with(0, old)


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _bias_name(node: ir.Node) -> str:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return _name(bias) if bias is not None and bias.is_initializer() else ""


def _drop_bias(model: ir.Model, node: ir.Node, taken: set[str]) -> None:
    """Its name becomes free where nobody else reads it."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    node.resize_inputs(2)
    if bias is not None and bias.is_initializer() and not bias.uses() and not bias.is_graph_output():
        del model.graph.initializers[_name(bias)]
        taken.discard(_name(bias))
