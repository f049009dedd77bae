"""Small edits that every rewriting step needs: constants, unique names, one node in another's place.

Tensors are shared between a model and its clones, so no function here writes into one: a changed weight is
a new initializer. For the same reason initializers are never renamed (``Value.name`` renames the tensor too).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

Attribute = int | float | str | Sequence[int] | Sequence[float]


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer that no caller can override, and for the output of a Constant node."""
    if value is None or value.is_graph_input():
        return False
    if value.is_initializer():
        return value.const_value is not None
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant" and producer.domain == ""


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind a constant: dtype, shape and nbytes are known without reading external data."""
    if value is None or not is_constant(value):
        return None
    return ir.convenience.get_const_tensor(value)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array behind a constant, None for everything else. Shared: copy before changing it."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a constant with exactly one element, whatever its rank; None for everything else."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype.is_string():
        return None
    return float(tensor.numpy().reshape(()))


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants as a file stores them: initializers and Constant nodes, subgraphs included."""
    total = 0
    for graph in model.graphs():
        total += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            if node.op_type == "Constant":
                tensor = ir.convenience.get_const_tensor(node.outputs[0])
                total += tensor.nbytes if tensor is not None else 0
    return total


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``; None if several or none do, or if the graph puts it out."""
    if value.is_graph_output():
        return None
    consumers = value.consumers()
    return consumers[0] if len(consumers) == 1 and consumers[0].graph is value.graph else None


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that made a value, if it is one of that operation of the standard."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, those of the bodies of If, Loop and Scan included."""
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def names(model: ir.Model) -> set[str]:
    """Every name of a value or a node."""
    taken: set[str] = set()
    for graph in model.graphs():
        taken.update(graph.initializers)
        taken.update(v.name for v in graph.inputs if v.name)
        for node in graph:
            taken.update(v.name for v in node.outputs if v.name)
            if node.name:
                taken.add(node.name)
    return taken


def fresh_name(model: ir.Model, stem: str, taken: set[str] | None = None) -> str:
    """``stem``, or ``stem_2``, ``stem_3``, ...: the first that no value and no node bears.

    Walks the model. Who needs many names passes ``taken = names(model)`` once: it is looked up and added to.
    """
    known = names(model) if taken is None else taken
    name, count = stem, 2
    while name in known:
        name, count = f"{stem}_{count}", count + 1
    if taken is not None:
        taken.add(name)
    return name


def add_initializer(model: ir.Model, name: str, array: np.ndarray, taken: set[str] | None = None) -> ir.Value:
    """Store ``array`` as a new constant under ``name``, or under the next free name if that is taken."""
    name = fresh_name(model, name, taken)
    tensor = ir.Tensor(array, name=name)  # ir.tensor asks slowly what it is given
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def substitute(old: ir.Value, new: ir.Value) -> bool:
    """Let every reader of ``old`` read ``new``. False, and nothing done, where an output would lose its name.

    An output of the graph keeps its name: ``new`` takes it, and ``old`` is left with the name of ``new``.
    That cannot be where ``new`` is itself an input, an initializer or an output.
    """
    if old.is_graph_output():
        if (
            new.is_graph_input()
            or new.is_initializer()
            or new.is_graph_output()
            or new.graph is not old.graph
        ):
            return False
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, new.name
        if new.shape is None:
            new.shape = old.shape
        return True
    old.replace_all_uses_with(new)
    return True


def remove(nodes: Iterable[ir.Node]) -> None:
    """Take nodes out whose outputs nobody reads any more, last one first."""
    for node in nodes:
        assert node.graph is not None
        node.graph.remove(node, safe=True)


def remove_dead(nodes: Iterable[ir.Node]) -> None:
    """Take out those of ``nodes`` that nobody reads, then what only they read, and so on upwards."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        producers = [v.producer() for v in node.inputs if v is not None]
        node.graph.remove(node, safe=True)
        pending.extend(p for p in producers if p is not None)


def take_over(node: ir.Node, last: ir.Node) -> None:
    """Let ``node`` put out what ``last`` did, under that name; ``last`` goes, and what only it needed."""
    old, new = last.outputs[0], node.outputs[0]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    name, old.name = old.name, None
    new.name, new.type, new.shape = name, old.type, old.shape
    remove_dead([last])


def replace_weight(model: ir.Model, node: ir.Node, position: int, array: np.ndarray) -> ir.Value:
    """Give ``node`` another constant as input ``position``, of the type of the old one.

    It keeps the old one's name if nothing else reads that, and gets a new one otherwise.
    """
    old = node.inputs[position]
    assert old is not None and old.name is not None and old.dtype is not None
    array = array.astype(old.dtype.numpy())
    if len(old.uses()) == 1 and old.is_initializer() and not old.is_graph_output():
        del model.graph.initializers[old.name]
        node.replace_input_with(position, None)
        new = ir.Value(
            name=old.name,
            type=ir.TensorType(old.dtype),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=old.name),
        )
        model.graph.register_initializer(new)
    else:
        new = add_initializer(model, old.name, array)
    node.replace_input_with(position, new)
    return new


def replace_everywhere(model: ir.Model, value: ir.Value, array: np.ndarray) -> None:
    """Give all readers of a constant another one of its type, under the same name."""
    uses = list(value.uses())
    node, position = uses[0]
    for other, index in uses[1:]:
        other.replace_input_with(index, None)
    new = replace_weight(model, node, position, np.ascontiguousarray(array))
    for other, index in uses[1:]:
        other.replace_input_with(index, new)


def insert_before(
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Attribute] | None = None,
    *,
    name: str,
    output: str,
) -> ir.Node:
    """A new node with one output, placed before ``anchor``. ``name`` and ``output`` must be free."""
    node = ir.node(op_type, inputs, attributes=attributes, name=name, outputs=[ir.Value(name=output)])
    assert anchor.graph is not None
    anchor.graph.insert_before(anchor, node)
    return node


def insert_behind(
    model: ir.Model,
    node: ir.Node,
    op_type: str,
    operand: ir.Value,
    attributes: Mapping[str, Attribute] | None = None,
) -> ir.Node:
    """Put an operation of the output of ``node`` and ``operand`` behind it: it takes its name and readers."""
    old, taken = node.outputs[0], names(model)
    follower = ir.node(
        op_type, [None, operand], attributes, name=fresh_name(model, f"{node.name}/{op_type}", taken)
    )
    name, new = old.name, follower.outputs[0]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    follower.replace_input_with(0, old)
    assert node.graph is not None
    node.graph.insert_after(node, follower)
    old.name = fresh_name(model, f"{name}/{node.op_type}", taken)
    new.name, new.type, new.shape = name, old.type, old.shape
    return follower


def replace_node(
    old: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Attribute] | None = None,
    *,
    domain: str = "",
    name: str | None = None,
) -> ir.Node:
    """Put a new node in the place of ``old``: its output keeps name, type and shape, its readers move over.

    ``name`` is the new node's, that of ``old`` if not given. Only for nodes with one output.
    """
    before = old.outputs[0]
    assert len(old.outputs) == 1 and old.graph is not None
    node = ir.node(
        op_type,
        inputs,
        attributes=attributes,
        domain=domain,
        name=old.name if name is None else name,
        outputs=[ir.Value(name=before.name, type=before.type, shape=before.shape)],
    )
    node.metadata_props.update(old.metadata_props)
    old.graph.insert_before(old, node)
    before.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    old.graph.remove(old, safe=True)
    return node
