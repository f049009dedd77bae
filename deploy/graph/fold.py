"""Constant folding: what does not depend on the inputs is computed now, once.

Two kinds. `fold_shapes` needs no arithmetic: a chain such as Shape, Slice, Concat whose result is known from
the inferred shapes becomes a constant, with a free batch too where Reshape can be told so by -1 or 0.
`fold_constants` runs the constant part of the graph in ONNX Runtime. Both change the model in place and
return how many values became constants.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from deploy.graph import symbolic
from deploy.graph.edit import add_initializer, constant, constant_tensor, is_constant, remove_dead
from deploy.graph.symbolic import Size

SMALL = 1024
"""Bytes that a folded value may always take: the node that goes, with its names, takes hundreds itself."""
_LARGE = 2**24
"""Bytes. A constant node that puts out more than this, and more than it reads, is not even tried."""

_KEPT = {
    # random: another value every time
    "Bernoulli", "Multinomial", "Dropout",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
    # integer weights stay integers
    "DequantizeLinear",
    # a name for a constant, removed without copying it
    "Identity",
    # already a constant
    "Constant",
}  # fmt: skip

_NUMPY_TYPES = {
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BOOL,
    ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
    ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
}  # fmt: skip

logger = logging.getLogger(__name__)


def fold_shapes(model: ir.Model) -> int:
    """Turn values known from the shapes into constants. Shapes must be inferred."""
    known = symbolic.values(model)
    changes = 0
    for value, array in known.items():
        exact = symbolic.numbers(array)
        if exact is None or value.producer() is None or is_constant(value) or value.dtype is None:
            continue
        if value.uses() and not value.is_graph_output():
            _become_constant(model, value, exact.astype(value.dtype.numpy()))
            changes += 1
    for node in list(model.graph):
        if node.op_type == "Reshape" and node.domain == "":
            changes += _fold_target(model, node, known)
    return changes


def _fold_target(model: ir.Model, node: ir.Node, known: Mapping[ir.Value, np.ndarray]) -> bool:
    """Give a Reshape a constant target where only one element is open (-1), or the others are copied (0)."""
    data, target = node.inputs[0], node.inputs[1]
    if target is None or data is None or is_constant(target):
        return False
    array = known.get(target)
    if array is None or array.ndim != 1:
        return False
    if node.attributes.get_int("allowzero", 0) and any(s is None or s == Size(0) for s in array):
        return False  # its zeros mean zero; without any, it says nothing
    dims = symbolic.sizes(data.shape) or ()
    wanted: list[int | None] = [None if s is None else s.number for s in array]
    if wanted.count(None) > 1 or (None in wanted and -1 in wanted):
        # 0 copies the input's dimension at the same place.
        for axis, s in enumerate(array):
            if s is not None and s.symbols and axis < len(dims) and dims[axis] == s:
                wanted[axis] = 0
    # The number of elements does not change, so a single open one follows from the others.
    if wanted.count(None) > 1 or (None in wanted and -1 in wanted):
        return False
    if None in wanted and any(w == 0 and array[axis] == Size(0) for axis, w in enumerate(wanted)):
        return False  # an empty tensor: -1 would be ambiguous
    folded = np.array([-1 if w is None else w for w in wanted], dtype=np.int64)
    node.attributes.pop("allowzero", None)
    if len(target.uses()) == 1 and not target.is_graph_output():
        _become_constant(model, target, folded)
    else:  # others read the exact sizes under the old name
        producer = target.producer()
        node.replace_input_with(1, add_initializer(model, f"{node.name}_shape", folded))
        remove_dead([producer] if producer is not None else [])
    return True


def _become_constant(model: ir.Model, value: ir.Value, array: np.ndarray) -> None:
    """Replace ``value`` by an initializer of the same name; what only it needed goes."""
    producer = value.producer()
    assert producer is not None
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=value.name)
    new = ir.Value(
        name=value.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    value.name = None  # the producer may live on for its other outputs
    model.graph.register_initializer(new)
    value.replace_all_uses_with(new)
    remove_dead([producer])


def fold_constants(model: ir.Model) -> int:
    """Compute every maximal constant part of the graph with ONNX Runtime, its own optimizations off.

    Kept as nodes: what is random, dequantized weights, outputs of the graph, and results that are larger than
    both `SMALL` and the constants that would go away with them (a small constant expanded to a large one).
    """
    refused: set[ir.Node] = set()
    changes = 0
    while True:
        nodes = _constant_nodes(model, refused)
        frontier = [v for n in nodes for v in n.outputs if any(c not in nodes for c in v.consumers())]
        if not frontier:
            return changes
        results = _evaluate(model, nodes, frontier)
        claimed: set[ir.Value] = set()
        done = 0
        for value in frontier:
            array = results.get(value)
            producer = value.producer()
            assert producer is not None
            freed = _freed(value, nodes) - claimed
            if array is None or array.nbytes > max(SMALL, sum(_bytes(v) for v in freed)):
                refused.add(producer)
                continue
            claimed |= freed
            _become_constant(model, value, array)
            done += 1
        changes += done
        if done == len(frontier):
            return changes


def _constant_nodes(model: ir.Model, refused: set[ir.Node]) -> dict[ir.Node, None]:
    """Nodes that depend on nothing but constants, in order."""
    nodes: dict[ir.Node, None] = {}
    for node in model.graph:
        if node.domain != "" or node.op_type in _KEPT or node in refused or not node.inputs:
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            continue
        if any(v.is_graph_output() or v.dtype not in _NUMPY_TYPES for v in node.outputs):
            continue
        read = [v for v in node.inputs if v is not None]
        if all(_readable(v) or v.producer() in nodes for v in read) and not _swells(node, read):
            nodes[node] = None
    return nodes


def _readable(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    return tensor is not None and tensor.dtype in _NUMPY_TYPES


def _swells(node: ir.Node, read: Sequence[ir.Value]) -> bool:
    return sum(_bytes(v) for v in node.outputs) > max(_LARGE, sum(_bytes(v) for v in read))


def _bytes(value: ir.Value) -> int:
    """Of a value with a static shape; 0 where that is not known."""
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        return 0
    return int(np.prod(value.shape.numpy(), dtype=np.int64) * value.dtype.itemsize)


def _freed(value: ir.Value, nodes: Mapping[ir.Node, None]) -> set[ir.Value]:
    """The constants behind ``value`` that nothing but the constant part of the graph reads."""
    found: set[ir.Value] = set()
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        producer = current.producer()
        if is_constant(current):
            if all(c in nodes for c in current.consumers()):
                found.add(current)
        elif producer is not None:
            pending.extend(v for v in producer.inputs if v is not None)
    return found


def _evaluate(
    model: ir.Model, nodes: Mapping[ir.Node, None], wanted: Sequence[ir.Value]
) -> dict[ir.Value, np.ndarray]:
    """All ``wanted`` values in one run; one run each where ONNX Runtime cannot do some of them."""
    try:
        return _run(model, nodes, wanted)
    except Exception as e:  # noqa: BLE001  vendor boundary: what cannot be computed is left in the graph
        if len(wanted) == 1:
            logger.info("%s stays: %s", wanted[0].name, e)
            return {}
    results: dict[ir.Value, np.ndarray] = {}
    for value in wanted:
        results |= _evaluate(model, nodes, [value])
    return results


def _run(
    model: ir.Model, nodes: Mapping[ir.Node, None], wanted: Sequence[ir.Value]
) -> dict[ir.Value, np.ndarray]:
    import onnxruntime as ort

    needed: set[ir.Node] = set()
    pending = [v.producer() for v in wanted]
    while pending:
        node = pending.pop()
        if node is not None and node in nodes and node not in needed:
            needed.add(node)
            pending.extend(v.producer() for v in node.inputs if v is not None)
    copies: dict[ir.Value, ir.Value] = {}
    feeds: dict[str, np.ndarray] = {}
    inputs: list[ir.Value] = []
    body: list[ir.Node] = []
    for node in nodes:
        if node not in needed:
            continue
        for value in node.inputs:
            array = constant(value) if value is not None and value not in copies else None
            if value is not None and array is not None:
                copy = ir.Value(name=f"i{len(inputs)}", type=value.type, shape=ir.Shape(array.shape))
                copies[value] = copy
                inputs.append(copy)
                feeds[copy.name or ""] = array
        outputs = [ir.Value(name=f"o{len(body)}_{i}", type=v.type) for i, v in enumerate(node.outputs)]
        copies.update(zip(node.outputs, outputs, strict=True))
        read = [None if v is None else copies[v] for v in node.inputs]
        body.append(ir.Node("", node.op_type, read, attributes=node.attributes.values(), outputs=outputs))
    graph = ir.Graph(
        inputs,
        [copies[v] for v in wanted],
        nodes=body,
        opset_imports=dict(model.opset_imports),
        name="constants",
    )
    proto = ir.to_proto(ir.Model(graph, ir_version=model.ir_version))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = session.run([copies[v].name for v in wanted], feeds)
    return dict(zip(wanted, (np.asarray(a) for a in arrays), strict=True))
