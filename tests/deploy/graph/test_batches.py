"""Products of many axes as products of four, against ONNX Runtime on what was given."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.graph import shapes
from deploy.graph.cost import macs
from deploy.graph.rules import apply_rules


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("n,2,3,4,5", "n,2,3,5,6"),
        ("2,n,3,4,5", "2,n,3,5,6"),
        ("2,2,3,4,5", "2,2,3,5,1"),
        ("2,2,1,3,4,5", "2,2,1,3,5,6"),
    ],
)
def test_leading_axes_are_folded(parse, prove, left: str, right: str) -> None:
    model = shapes.infer(
        parse(f"g (float[{left}] x, float[{right}] z) => (float y) {{ [mm] y = MatMul(x, z) }}")
    )
    found = apply_rules(model, ["fold-batches"], prove)
    assert [(r.kept, r.why) for r in found.rewrites] == [(True, "")]
    result = shapes.infer(found.model)
    assert [node.op_type for node in result.graph] == ["Reshape", "Reshape", "MatMul", "Reshape"]
    assert all(len(value.shape) == 4 for value in result.graph[2].inputs)
    assert result.graph.outputs[0].shape == model.graph.outputs[0].shape
    assert macs(result, 3) == macs(model, 3)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("2,3,4,5", "2,3,5,6"),  # four axes are enough
        ("n,2,3,4,5", "1,2,3,5,6"),  # one of them is read again and again
        ("n,2,3,4,5", "3,5,6"),
        ("n,m,3,4,5", "n,m,3,5,6"),  # two sizes could not be told apart behind it
        ("n,2,m,4,5", "n,2,m,5,6"),
    ],
)
def test_what_stays(parse, left: str, right: str) -> None:
    model = shapes.infer(parse(f"g (float[{left}] x, float[{right}] z) => (float y) {{ y = MatMul(x, z) }}"))
    assert not apply_rules(model, ["fold-batches"], lambda *_: "must not be asked").rewrites


def test_a_constant_operand_is_folded_as_it_is(parse, prove) -> None:
    weight = np.random.default_rng(0).normal(size=(2, 2, 3, 5, 6)).astype(np.float32)
    model = shapes.infer(parse("g (float[2,2,3,4,5] x) => (float y) { y = MatMul(x, w) }", {"w": weight}))
    assert apply_rules(model, ["fold-batches"], prove).rewrites[0].kept
