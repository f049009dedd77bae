"""Roundabout ways in which exporters say something that has a plain name, said plainly. All work in place."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant, fresh_name, insert_before, replace_node, scalar, sole_consumer

_WITH_BIAS = ("Conv", "ConvTranspose", "Gemm")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def settle_casts(model: ir.Model) -> int:
    """CastLike > Cast, where the type is known: then a constant can be converted once and for all."""
    done = 0
    for node in _nodes(model, ("CastLike",)):
        dtype = node.inputs[1].dtype if node.inputs[1] is not None else None
        if dtype is not None:
            replace_node(node, "Cast", [node.inputs[0]], {"to": dtype.value})
            done += 1
    return done


def drop_zero_biases(model: ir.Model) -> int:
    """A bias that is *computed* as zeros is none; PyTorch's exporter gives one to convolutions without.

    Zeros stored as a constant are a parameter, and stay.
    """
    done = 0
    for node in _nodes(model, _WITH_BIAS):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        maker = bias.producer() if bias is not None else None
        if maker is None or maker.domain != "":
            continue
        fill = maker.attributes.get_tensor("value", None)
        zeros = (maker.op_type == "Expand" and scalar(maker.inputs[0]) == 0) or (
            maker.op_type == "ConstantOfShape" and (fill is None or not fill.numpy().any())
        )
        if zeros:
            node.resize_inputs(2)
            done += 1
    return done


def pool_globally(model: ir.Model) -> int:
    """ReduceMean over the two spatial axes of NCHW > GlobalAveragePool, which runtimes know in integers too.

    Where the axes are dropped, a Flatten behind it does that.
    """
    done = 0
    for node in _nodes(model, ("ReduceMean",)):
        source = node.inputs[0]
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if source is None or source.shape is None or axes is None or source.shape.rank() != 4:
            continue
        if source.dtype not in _FLOATS or sorted(int(a) % 4 for a in axes.ravel()) != [2, 3]:
            continue
        if node.attributes.get_int("keepdims", 1):
            replace_node(node, "GlobalAveragePool", [source])
        else:
            name = fresh_name(model, f"{node.name}_pool")
            pool = insert_before(node, "GlobalAveragePool", [source], name=name, output=name)
            pool.outputs[0].type = source.type
            pool.outputs[0].shape = ir.Shape([source.shape[0], source.shape[1], 1, 1])
            replace_node(node, "Flatten", [pool.outputs[0]], {"axis": 1})
        done += 1
    return done


def merge_batched_transposes(model: ir.Model) -> int:
    """Leading axes joined by a Reshape, the rest transposed, then reshaped again > Transpose with all axes,
    then that Reshape, which does nothing any more where it only splits the leading axes again.

    So PyTorch's exporter writes the keys of scaled dot-product attention.
    """
    done = 0
    for split in _nodes(model, ("Reshape",)):
        transpose = _sole_producer(split, "Transpose")
        join = _sole_producer(transpose, "Reshape") if transpose is not None else None
        if transpose is None or join is None:
            continue
        permutation = list(transpose.attributes.get_ints("perm", ()) or ())
        source, target, last = join.inputs[0], constant(join.inputs[1]), constant(split.inputs[1])
        if source is None or source.shape is None or target is None or last is None or 0 in last:
            continue
        lead = source.shape.rank() - len(target) + 1
        kept = [int(size) for size in target[1:]]
        if not permutation or permutation[0] != 0 or lead < 2 or min(kept, default=0) < 1:
            continue
        if kept != list(source.shape[lead:]):
            continue
        perm = [*range(lead), *(lead - 1 + axis for axis in permutation[1:])]
        new = replace_node(transpose, "Transpose", [source], {"perm": perm})
        new.outputs[0].shape = ir.Shape([source.shape[axis] for axis in perm])
        model.graph.remove(join, safe=True)
        done += 1
    return done


def plain_targets(model: ir.Model) -> int:
    """Reshape to a constant shape without zeros needs no ``allowzero``, which not every runtime knows."""
    done = 0
    for node in _nodes(model, ("Reshape",)):
        target = constant(node.inputs[1])
        if "allowzero" in node.attributes and target is not None and np.all(target != 0):
            del node.attributes["allowzero"]
            done += 1
    return done


def _nodes(model: ir.Model, ops: tuple[str, ...]) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in ops and node.domain == ""]


def _sole_producer(node: ir.Node, op_type: str) -> ir.Node | None:
    """What makes the first input of ``node``, if it is of that kind and nobody else reads it."""
    source = node.inputs[0]
    producer = source.producer() if source is not None and sole_consumer(source) is node else None
    fits = producer is not None and producer.op_type == op_type and producer.domain == ""
    return producer if fits else None
