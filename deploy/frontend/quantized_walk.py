"""The state of importing a quantized model: which float value each code stands for, and who read it how."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy.frontend.quantized_forms import (
    LINEAR,
    activation_bounds,
    dequantize,
    digest,
    never_negative,
    quantize,
)
from deploy.frontend.rewrite import Edit, owner
from deploy.spec.plan import QuantParams, TensorPlan


@dataclass(frozen=True)
class Code:
    """What a value of codes stands for: a float value, and the parameters between the two."""

    value: ir.Value
    params: QuantParams


@dataclass
class Walk:
    """The state of the walk. ``codes`` has the integer values, ``floats`` the outputs of DequantizeLinear."""

    edit: Edit
    codes: dict[ir.Value, Code] = field(default_factory=dict)
    floats: dict[ir.Value, Code] = field(default_factory=dict)
    constants: dict[ir.Value, TensorPlan] = field(default_factory=dict)
    reads: dict[ir.Value, list[tuple[str, QuantParams]]] = field(default_factory=dict)
    shared: dict[ir.Value, ir.Value] = field(default_factory=dict)
    bias_of: dict[ir.Value, tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    clamped: dict[ir.Value, ir.Value] = field(default_factory=dict)
    stored: dict[tuple[ir.Value, QuantParams], ir.Value] = field(default_factory=dict)

    def read(self, code: Code, reader: str) -> ir.Value:
        """The float value behind ``code``, noting that the node ``reader`` reads it quantized."""
        if code.value not in self.constants:
            self.reads.setdefault(code.value, []).append((reader, code.params))
        return code.value


def float_constant(
    source: ir.Value, codes: np.ndarray, params: QuantParams, node: ir.Node, walk: Walk
) -> ir.Value:
    """The float initializer in the place of a quantized constant that ``node`` reads."""
    if (source, params) in walk.stored:
        return walk.stored[source, params]
    array = dequantize(codes, params)
    name = walk.edit.fresh(f"{source.name or node.name}/float")
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    walk.edit.model.graph.register_initializer(value)
    # A large int32 does not survive float32: then the codes found again differ in the last place.
    exact = bool((quantize(array, params) == codes).all())
    walk.constants[value] = TensorPlan(
        **params.model_dump(), origin="imported", digest=digest(codes, params) if exact else None
    )
    walk.stored[source, params] = value
    return value


def with_activation(value: ir.Value, params: QuantParams, walk: Walk) -> ir.Value:
    """``value``, behind the activation that a quantizer left to the clamping of the codes.

    ONNX Runtime's quantizer drops a Relu or Clip whose bounds are the codes' own. In codes its return changes
    nothing; without codes the network needs it. The activation takes over the name.
    """
    if value in walk.clamped:
        return walk.clamped[value]
    node = value.producer()
    bounds = activation_bounds(params)
    if node is None or bounds is None or node.op_type not in LINEAR or never_negative(value):
        return value
    low, high = bounds
    limits = (
        []
        if high is None
        else [walk.edit.constant(np.array(v, np.float32), node, "limit") for v in (low, high)]
    )
    kind = "Relu" if high is None else "Clip"
    clamp = ir.node(kind, [value, *limits], name=walk.edit.fresh(f"{node.name}/{kind}"))
    owner(node).insert_after(node, clamp)
    result = clamp.outputs[0]
    result.type, result.shape = value.type, value.shape
    if value.is_graph_output():
        result.name = walk.edit.fresh(f"{value.name}/clamped")
    else:
        result.name, value.name = value.name, walk.edit.fresh(f"{value.name}/linear")
    walk.clamped[value] = result
    return result


def link_bias(bias: ir.Value, x: ir.Value, weight: ir.Value, walk: Walk) -> None:
    """Note an int32 bias whose scale is the product of the input's and the weight's."""
    plan, of_weight = walk.constants[bias], walk.constants.get(weight)
    of_x = next((p for _, p in walk.reads.get(x, [])[::-1]), None)
    if plan.type != "int32" or bias in walk.bias_of or of_weight is None:
        return
    if of_x is not None:
        product = np.float32(of_x.scale[0]) * np.array(of_weight.scale, np.float32)
        if not np.allclose(product, np.array(plan.scale, np.float32), rtol=1e-5):
            return
    walk.bias_of[bias] = (x, weight)


def producer_of(value: ir.Value) -> ir.Node:
    """The node that computes ``value``. Raises ValueError where there is none."""
    node = value.producer()
    if node is None:
        raise ValueError(f"'{value.name}' is computed by no node")
    return node
