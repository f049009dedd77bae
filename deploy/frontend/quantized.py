"""A model that is already quantized: its parameters are taken over, never found a second time.

    x -> QuantizeLinear -> DequantizeLinear -> Conv   becomes   x -> Conv,      plan: x {scale, zero point}
    QLinearConv(x8, ..., w8, ..., b32)                becomes   Conv(x, w, b),  plan: x, w, b and the output

Each value of integer codes has a float value that it stands for. One walk in the order of computation keeps
that correspondence, puts the float operation in place of the quantized one, and notes under which parameters
each node read each value. Weights come out as code x scale exactly, so that the same parameters give the same
codes again.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from deploy.frontend.quantized_forms import (
    DEQUANTIZE,
    FORMS,
    FORWARD,
    MICROSOFT,
    ORDER_ONLY,
    QUANTIZE,
    Form,
    dequantize,
    is_quantized,
    linear_parameters,
    not_imported,
    parameters,
    quantize,
    weight_axis,
)
from deploy.frontend.quantized_walk import (
    Code,
    Walk,
    float_constant,
    link_bias,
    producer_of,
    with_activation,
)
from deploy.frontend.rewrite import Edit, NotExpressible, become, constant_array, given, owner, rank, required
from deploy.spec.plan import QuantParams, TensorPlan


def import_quantized(model: ir.Model) -> tuple[ir.Model, dict[str, TensorPlan]] | None:
    """The float graph inside a quantized one, and the parameters by value name; None for a float model.

    ``model`` follows the graph convention and is not changed. Understands QuantizeLinear / DequantizeLinear
    (ONNX and com.microsoft), the operations in `FORMS` and QLinearConcat, and what moves codes between them.
    Where only weights are quantized, the plan holds those alone. Raises UnsupportedError listing every node
    that is quantized dynamically, in blocks, or by an operation that is not understood.
    """
    if not any(is_quantized(node) for node in ir.traversal.RecursiveGraphIterator(model.graph)):
        return None
    model = model.clone()
    walk = Walk(Edit(model))
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        try:
            _translate(node, walk)
        except NotExpressible as e:
            walk.edit.refuse(node, str(e))
    walk.edit.raise_refused(
        "are quantized in a way that cannot be taken over",
        "hand in the float model: it is quantized statically here",
    )
    for graph in model.graphs():
        _connect_outputs(graph, walk)
    _remove_unread(model)
    _give_back_names(model, walk)
    return model, _plan(model, walk)


def _translate(node: ir.Node, walk: Walk) -> None:
    if not_imported(node):
        raise NotExpressible("dynamic or unknown quantization")
    if node.op_type == QUANTIZE and node.domain in ("", MICROSOFT):
        _quantize(node, walk)
    elif node.op_type == DEQUANTIZE and node.domain in ("", MICROSOFT):
        _dequantize(node, walk)
    elif (node.domain, node.op_type) == (MICROSOFT, "QLinearConcat"):
        _concat(node, walk)
    elif (form := FORMS.get((node.domain, node.op_type))) is not None:
        _float_operation(node, form, walk)
    else:
        _plain(node, walk)


def _quantize(node: ir.Node, walk: Walk) -> None:
    x, params = required(node, 0), linear_parameters(node)
    known = constant_array(x)
    if known is not None:  # a weight that is stored in float
        value = float_constant(x, quantize(known, params), params, node, walk)
        walk.codes[node.outputs[0]] = Code(value, params)
        return
    before = walk.floats.get(x)
    if before is None:
        walk.codes[node.outputs[0]] = Code(with_activation(x, params, walk), params)
        return
    if before.params == params:
        walk.codes[node.outputs[0]] = before
        return
    again = walk.edit.before(node, "Identity", [before.value], like=before.value)
    walk.read(before, producer_of(again).name or "")
    walk.codes[node.outputs[0]] = Code(again, params)


def _dequantize(node: ir.Node, walk: Walk) -> None:
    q, params = required(node, 0), linear_parameters(node)
    code = walk.codes.get(q)
    if code is not None:
        if code.params != params:
            raise NotExpressible("it reads codes by other parameters than they were written by")
        walk.floats[node.outputs[0]] = code
    elif (known := constant_array(q)) is not None:
        value = float_constant(q, known.astype(np.int64), params, node, walk)
        walk.floats[node.outputs[0]] = Code(value, params)
    else:  # codes come in from outside: the node stays, as a cast would
        walk.floats[node.outputs[0]] = Code(node.outputs[0], params)


def _plain(node: ir.Node, walk: Walk) -> None:
    """A float operation, or one that moves codes."""
    moved = [walk.codes[v] for v in node.inputs if v is not None and v in walk.codes]
    if moved and (node.domain or node.op_type not in FORWARD | ORDER_ONLY):
        raise NotExpressible("it computes with codes")
    if (
        moved
        and node.op_type == "Concat"
        and (len(moved) != len(node.inputs) or len({c.params for c in moved}) > 1)
    ):
        raise NotExpressible("it joins codes of several parameters")
    if moved and node.op_type == "Pad":
        _pad_value(node, moved[0].params, walk)
    for index, value in enumerate(node.inputs):
        code = None if value is None else walk.floats.get(value) or walk.codes.get(value)
        if code is not None:
            node.replace_input_with(index, walk.read(code, node.name or ""))
    if moved and node.op_type in FORWARD:
        for output in node.outputs:
            output.type = moved[0].value.type
            walk.codes[output] = Code(output, moved[0].params)
            walk.shared[output] = moved[0].value
    bias = given(node, 2)
    if node.op_type in ("Conv", "ConvTranspose", "Gemm") and bias is not None and bias in walk.constants:
        link_bias(bias, required(node, 0), required(node, 1), walk)


def _pad_value(node: ir.Node, params: QuantParams, walk: Walk) -> None:
    """A pad in codes: what is filled in is the value behind the code, 0 where none is given."""
    if node.attributes.get_string("mode", "constant") != "constant":
        return
    filler = given(node, 2)
    known = np.zeros((), np.int64) if filler is None else constant_array(filler)
    if known is None:
        raise NotExpressible("its value is computed")
    value = walk.edit.constant(dequantize(known.astype(np.int64).reshape(()), params), node, "value")
    become(node, "Pad", [required(node, 0), required(node, 1), value, given(node, 3)])


def _float_operation(node: ir.Node, form: Form, walk: Walk) -> None:
    _check_attributes(node)
    inputs: list[ir.Value | None] = [_resolve(required(node, i), node, walk) for i in form.plain]
    operands = [_operand(node, *triple, first=i == 0, walk=walk) for i, triple in enumerate(form.operands)]
    inputs += [code.value for code in operands]
    bias = None if form.bias is None else given(node, form.bias)
    if bias is not None:
        inputs.append(_bias(bias, operands[0], operands[1], node, walk))
    scale, zero = given(node, form.output[0]), given(node, form.output[1])
    params = None if scale is None else parameters(scale, zero, None, ir.DataType.UINT8)
    for code in operands:
        walk.read(code, node.name or "")
    node.domain = ""
    become(node, form.op, inputs)
    _finish(node, params, walk)


def _concat(node: ir.Node, walk: Walk) -> None:
    """QLinearConcat(scale, zero point, then x, scale, zero point of each)."""
    params = parameters(given(node, 0), given(node, 1), None, ir.DataType.UINT8)
    operands = [_operand(node, i, i + 1, i + 2, first=True, walk=walk) for i in range(2, len(node.inputs), 3)]
    node.domain = ""
    become(node, "Concat", [walk.read(code, node.name or "") for code in operands])
    _finish(node, params, walk)


def _finish(node: ir.Node, params: QuantParams | None, walk: Walk) -> None:
    output = node.outputs[0]
    output.type = ir.TensorType(ir.DataType.FLOAT)  # types are shared between clones, and so never changed
    if params is not None:
        walk.codes[output] = Code(with_activation(output, params, walk), params)


def _check_attributes(node: ir.Node) -> None:
    """Attributes that the float operation does not have."""
    if node.attributes.get_int("channels_last", 0):
        raise NotExpressible("channels last")
    node.attributes.pop("channels_last", None)
    if node.op_type == "QLinearSoftmax":
        axes, axis = rank(given(node, 0)), node.attributes.get_int("axis", -1)
        if node.attributes.get_int("opset", 13) < 13 and axis != -1 and (axes is None or axis != axes - 1):
            raise NotExpressible("softmax over several axes at once")
        node.attributes.pop("opset", None)
    if (
        node.op_type == "QGemm"
        and given(node, 6) is not None
        and node.attributes.get_float("alpha", 1.0) != 1
    ):
        raise NotExpressible("a scaled product with a bias")


def _operand(node: ir.Node, data: int, scale: int, zero: int, *, first: bool, walk: Walk) -> Code:
    q = required(node, data)
    axes = rank(q)
    axis = None if first or axes is None else weight_axis(node, axes)
    params = parameters(given(node, scale), given(node, zero), axis, q.dtype or ir.DataType.UINT8)
    code = walk.codes.get(q)
    if code is not None:
        if code.params != params:
            raise NotExpressible("it reads codes by other parameters than they were written by")
        return code
    known = constant_array(q)
    if known is not None:
        return Code(float_constant(q, known.astype(np.int64), params, node, walk), params)
    inputs = [q, given(node, scale), given(node, zero)]  # codes from outside stay codes up to here
    code = Code(walk.edit.before(node, DEQUANTIZE, inputs), params)
    code.value.type, code.value.shape = ir.TensorType(ir.DataType.FLOAT), q.shape
    walk.codes[q] = code
    return code


def _resolve(value: ir.Value, node: ir.Node, walk: Walk) -> ir.Value:
    code = walk.floats.get(value)
    return value if code is None else walk.read(code, node.name or "")


def _bias(bias: ir.Value, x: Code, weight: Code, node: ir.Node, walk: Walk) -> ir.Value:
    """An int32 bias whose scale is not written down: it is that of the products it is added to."""
    known = constant_array(bias)
    if known is None:
        raise NotExpressible("its bias is computed")
    scale = np.float32(x.params.scale[0]) * np.array(weight.params.scale, np.float32)
    params = QuantParams(
        type="int32",
        scale=tuple(float(s) for s in scale),
        zero_point=(0,) * scale.size,
        axis=None if scale.size == 1 else 0,
    )
    value = float_constant(bias, known.astype(np.int64), params, node, walk)
    walk.bias_of.setdefault(value, (x.value, weight.value))
    return value


# ------------------------------------------------------------------------------------------ the result


def _connect_outputs(graph: ir.Graph, walk: Walk) -> None:
    """Outputs keep their names: a dequantized one is the float value itself, codes stay codes."""
    for index, output in enumerate(graph.outputs):
        code = walk.floats.get(output)
        if code is not None and code.value is not output:
            value, producer = code.value, code.value.producer()
            if producer is None or producer.graph is not graph or value.is_graph_output():
                copy = ir.node("Identity", [value], name=walk.edit.fresh(f"{output.name}/Identity"))
                graph.append(copy)
                value = copy.outputs[0]
                value.type, value.shape = output.type, output.shape
                walk.read(code, copy.name or "")
            else:
                walk.reads.setdefault(value, []).append(("", code.params))
            value.type = output.type if value.type is None else value.type
            value.shape = output.shape if value.shape is None else value.shape
            name, output.name = output.name, walk.edit.fresh(f"{output.name}/dequantized")
            value.name, graph.outputs[index] = name, value
        elif (held := walk.codes.get(output)) is not None and held.value is output:
            graph.outputs[index] = _codes_again(output, held.params, walk)


def _codes_again(value: ir.Value, params: QuantParams, walk: Walk) -> ir.Value:
    """An output that is codes, computed from the float value that took its place."""
    node, name = producer_of(value), value.name
    value.name = walk.edit.fresh(f"{name}/dequantized")
    scale = walk.edit.constant(np.array(params.scale[0], np.float32), node, "scale")
    zero = walk.edit.constant(np.array(params.zero_point[0], params.type), node, "zero_point")
    quantize_node = ir.node(QUANTIZE, [value, scale, zero], name=walk.edit.fresh(f"{node.name}/{QUANTIZE}"))
    owner(node).insert_after(node, quantize_node)
    codes = quantize_node.outputs[0]
    codes.name, codes.shape, codes.type = name, value.shape, zero.type
    return codes


def _remove_unread(model: ir.Model) -> None:
    """Quantization nodes and constants that nothing reads any more."""
    for node in reversed(list(ir.traversal.RecursiveGraphIterator(model.graph))):
        if node.op_type in (QUANTIZE, DEQUANTIZE) and not any(
            out.uses() or out.is_graph_output() for out in node.outputs
        ):
            owner(node).remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    if not any(node.domain == MICROSOFT for node in ir.traversal.RecursiveGraphIterator(model.graph)):
        model.opset_imports.pop(MICROSOFT, None)


def _give_back_names(model: ir.Model, walk: Walk) -> None:
    """A float constant is called like the quantized one whose place it took, without the suffix that ONNX
    Runtime's quantizer or our own artifacts add."""
    taken = Edit(model).names
    for (source, _), value in walk.stored.items():
        name = (source.name or "").removesuffix("_quantized").removesuffix("/int")
        if name and name not in taken and value.name in model.graph.initializers:
            value.name = name
            taken.add(name)


def _plan(model: ir.Model, walk: Walk) -> dict[str, TensorPlan]:
    plan = {v.name or "": p for v, p in walk.constants.items() if v.name in model.graph.initializers}
    for bias, (x, weight) in walk.bias_of.items():
        link = {"bias_of": (x.name or "", weight.name or "")}
        plan[bias.name or ""] = walk.constants[bias].model_copy(update=link)
    for value, reads in walk.reads.items():
        by_reader = dict(reads)
        base = Counter(p for _, p in reads).most_common(1)[0][0]
        everyone = {node.name or "" for node in value.consumers()} | (
            {""} if value.is_graph_output() else set()
        )
        quantized = everyone & by_reader.keys()
        if not quantized:
            continue
        source = walk.shared.get(value)
        plan[value.name or ""] = TensorPlan(
            **base.model_dump(),
            origin="imported",
            shared_with=None if source is None else source.name,
            readers=() if quantized == everyone else tuple(sorted(quantized - {""})),
            uses={r: p for r, p in sorted(by_reader.items()) if r in quantized and r and p != base},
        )
    return dict(sorted(plan.items()))
