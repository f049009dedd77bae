"""Which nodes a runtime computes in integers, or moves, as they stand; at 8 bits and at 16."""

from __future__ import annotations

import onnx_ir as ir

from deploy.graph.edit import is_constant
from deploy.spec.profile import QuantRules, Runtime

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Max", "Min")


def eligible(node: ir.Node, runtime: Runtime) -> bool:
    """Whether the runtime has an integer kernel for this node as it stands."""
    rules = runtime.quant
    if rules is None or node.op_type not in rules.compute or node.domain not in ("", "ai.onnx"):
        return False
    if not node.outputs or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    if node.op_type == "Gemm" and not (
        node.attributes.get_float("alpha", 1.0) == 1.0 and node.attributes.get_float("beta", 1.0) == 1.0
    ):
        return False
    constant = [v is not None and is_constant(v) for v in node.inputs]
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", *rules.weighted):
        return not constant[0] and constant[1]
    if any(_off_centre(node.inputs[index], rules) for index in rules.centred.get(node.op_type, ())):
        return False
    if node.op_type in _ELEMENTWISE:
        return not any(constant)  # an operand that is constant costs less in float than a requantization
    return not constant[0]


def _off_centre(value: ir.Value | None, rules: QuantRules) -> bool:
    """Whether a value's zero point is prescribed, and not 0, where it is made or where it is moved from."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in rules.forward and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    fixed = None if node is None else rules.fixed_output.get(node.op_type)
    return fixed is not None and fixed.zero_point != 0


def mixes(runtime: Runtime) -> bool:
    """Whether blocks with activations of 8 and of 16 bits may stand side by side."""
    rules = runtime.quant
    return (
        rules is not None and runtime.quant16 is not None and rules.activation == "int8" and rules.pair_moved
    )


def widens(node: ir.Node, runtime: Runtime) -> bool:
    """Whether a node that is computed, or moved, with activations of 8 bits can have 16."""
    rules, wide = runtime.quant, runtime.quant16
    if rules is None or wide is None:
        return False
    if node.op_type in rules.compute and eligible(node, runtime):
        return eligible(node, runtime.model_copy(update={"quant": wide}))
    movers = (*rules.forward, *rules.unify)
    return node.op_type not in movers or node.op_type in (*wide.forward, *wide.unify)
