"""Products of the form ``dynamic`` as ONNX writes them, which ONNX Runtime fuses into one kernel.

    x -> DynamicQuantizeLinear -> MatMulInteger(codes of weights) -> Cast -> Mul(both scales) [-> Add(bias)]

It is what the pairs around the product say (`graph/grouped.py`), which ONNX Runtime would not fuse: beside a
bias it makes a float Gemm of them, between two DequantizeLinear that run every time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant, fresh_name, names
from deploy.graph.qdq import data_digest
from deploy.spec.plan import Plan, TensorPlan


def integer_products(graph: ir.Model, plan: Plan) -> ir.Model:
    """A copy in which the products of ``dynamic`` blocks compute with integers; the graph itself without."""
    dynamic = {name for block in plan.blocks if block.precision == "dynamic" for name in block.nodes}
    chosen = [n.name for n in graph.graph if n.name in dynamic and _weights(n) is not None]
    if not chosen:
        return graph
    copy = graph.clone()
    taken = names(copy)
    rounded: dict[str, tuple[ir.Value, ir.Value, ir.Value]] = {}
    stored: dict[str, tuple[ir.Value, ir.Value]] = {}
    for node in list(copy.graph):
        if node.name in chosen:
            _replace(copy, node, rounded, stored, taken)
    for node in reversed(list(copy.graph)):
        if node.op_type == "DequantizeLinear" and not node.outputs[0].uses():
            copy.graph.remove(node, safe=True)
    for name in [n for n, value in copy.graph.initializers.items() if not value.uses()]:
        if not copy.graph.initializers[name].is_graph_output():
            copy.graph.initializers.pop(name)
    return copy


def _weights(node: ir.Node) -> ir.Node | None:
    """The DequantizeLinear behind a product's weights: symmetric int8, a scale for each column."""
    value = node.inputs[1] if node.op_type in ("MatMul", "Gemm") and len(node.inputs) > 1 else None
    source = None if value is None else value.producer()
    if source is None or source.op_type != "DequantizeLinear":
        return None
    if node.attributes.get_int("transB", 0):
        return None
    codes = constant(source.inputs[0])
    return source if codes is not None and codes.dtype == np.int8 and codes.ndim == 2 else None


def _replace(
    model: ir.Model,
    node: ir.Node,
    rounded: dict[str, tuple[ir.Value, ir.Value, ir.Value]],
    stored: dict[str, tuple[ir.Value, ir.Value]],
    taken: set[str],
) -> None:
    source, pair = node.inputs[0], _weights(node)
    assert source is not None and pair is not None
    result, key = node.outputs[0], pair.name or ""
    if source.name not in rounded:
        quantize = ir.node(
            "DynamicQuantizeLinear", [source], num_outputs=3, name=_free(model, node, "quantize", taken)
        )
        for output, kind in zip(quantize.outputs, ("codes", "scale", "zero_point"), strict=True):
            output.name = fresh_name(model, f"{quantize.name}/{kind}", taken)
        model.graph.insert_before(node, quantize)
        rounded[source.name or ""] = (quantize.outputs[0], quantize.outputs[1], quantize.outputs[2])
    if key not in stored:
        name = pair.outputs[0].name or ""
        codes, scale = constant(pair.inputs[0]), constant(pair.inputs[1])
        assert codes is not None and scale is not None
        pair.outputs[0].name = fresh_name(model, f"{name}/float", taken)
        taken.discard(name)  # the integers bear the planned name from here on: by it they are read back
        stored[key] = (
            add_initializer(model, name, codes, taken),
            add_initializer(model, f"{name}/scales", scale, taken),
        )
    codes_of, scale_of, zero_of = rounded[source.name or ""]
    weights, scales = stored[key]

    def put(kind: str, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        made = ir.node(op, list(inputs), attributes, name=_free(model, node, kind, taken))
        made.outputs[0].name = made.name
        model.graph.insert_before(node, made)
        return made.outputs[0]

    sums = put(
        "float", "Cast", put("sum", "MatMulInteger", codes_of, weights, zero_of), to=ir.DataType.FLOAT.value
    )
    by = put("scale", "Mul", scale_of, scales)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    scaled = [sums, by] if bias is None else [put("product", "Mul", sums, by), bias]
    last = ir.node("Add" if bias is not None else "Mul", scaled, name=node.name)
    last.outputs[0].type, last.outputs[0].shape = result.type, result.shape
    last.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, last)
    kept = result.name
    result.replace_all_uses_with(last.outputs[0], replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    last.outputs[0].name = kept


def _free(model: ir.Model, node: ir.Node, kind: str, taken: set[str]) -> str:
    return fresh_name(model, f"{node.name}/{kind}", taken)


def read_products(model: ir.Model) -> dict[str, TensorPlan]:
    """The parameters of weights that MatMulInteger reads, by their names."""
    found = {}
    for node in model.graph:
        if node.op_type != "MatMulInteger" or (codes := constant(node.inputs[1])) is None:
            continue
        scale = _scales(node)
        found[node.inputs[1].name or ""] = TensorPlan(  # type: ignore[union-attr]  # constant() has seen it
            type="int8",
            scale=tuple(float(s) for s in scale),
            zero_point=(0,) * scale.size,
            axis=1,
            origin="imported",
            digest=data_digest(codes),
        )
    return found


def _scales(product: ir.Node) -> np.ndarray:
    """What the sums of a MatMulInteger are multiplied by, column by column, besides the activation's scale.

    Raises ValueError where that cannot be seen.
    """
    for cast, _ in product.outputs[0].uses():
        for multiply, slot in cast.outputs[0].uses():
            other = multiply.inputs[1 - slot]
            source = None if other is None else other.producer()
            for value in () if source is None else source.inputs:
                if (scale := constant(value)) is not None:
                    return scale.astype(np.float32).ravel()
    raise ValueError(f"{product.name}: the scales of its weights must be constants")
