"""A graph for a device of fixed sizes: the batch is 1, other sizes are asked for."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deploy.errors import UnsupportedError
from deploy.graph.fixed import fix_batch
from deploy.graph.shapes import infer


def graph(body: str) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> {body}')
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
    return infer(model)


def test_the_batch_becomes_one_everywhere_in_a_copy() -> None:
    model = graph("g (float[n,3] a, float[n,5] b) => (float[n,8] y) { y = Concat<axis = 1>(a, b) }")
    fixed = fix_batch(model)
    assert [list(v.shape or ()) for v in (*fixed.graph.inputs, *fixed.graph.outputs)] == [
        [1, 3],
        [1, 5],
        [1, 8],
    ]
    assert not isinstance(model.graph.inputs[0].shape[0], int), "the one given stays"


def test_what_was_computed_from_the_batch_is_a_number() -> None:
    model = graph("g (float[n,3] a) => (float[n,3] y) { s = Shape(a)  y = Reshape(a, s) }")
    assert [node.op_type for node in fix_batch(model).graph] == ["Reshape"]


def test_nothing_free_is_nothing_done() -> None:
    model = graph("g (float[2,3] a) => (float[2,3] y) { y = Relu(a) }")
    assert fix_batch(model) is model


def test_another_free_size_is_named_with_the_flag_that_fixes_it() -> None:
    model = graph("g (float[n,3,h,w] a) => (float[n,3,h,w] y) { y = Relu(a) }")
    with pytest.raises(UnsupportedError, match="'h' of a, 'w' of a") as e:
        fix_batch(model)
    assert "--shape a=1,3,N,N" in e.value.hint
