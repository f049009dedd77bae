import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph import edit
from deploy.graph.rewrite import rewrite

TEXT = (
    "g (float[n,2] x) => (float[n,2] y) <float[2] w = {1, 2}>"
    """
{ [a] h = Mul(x, w) [b] i = Identity(h) [c] y = Exp(i) }"""
)


def good(model: ir.Model) -> int:
    for node in list(model.graph):
        if node.op_type == "Identity":
            edit.substitute(node.outputs[0], node.inputs[0])
            edit.remove([node])
            return 1
    return 0


def wrong(model: ir.Model) -> int:
    """Square root for the exponential."""
    for node in list(model.graph):
        if node.op_type == "Exp":
            edit.replace_node(node, "Softplus", node.inputs)
            return 1
    return 0


def growing(model: ir.Model) -> int:
    """The same numbers, stored for a thousand times more bytes."""
    node = next(n for n in model.graph if n.op_type == "Mul")
    if not edit.is_constant(node.inputs[1]):
        return 0
    wide = np.tile(np.float32([1, 2]), (1000, 1))
    table = edit.add_initializer(model, "wide", wide)
    index = edit.add_initializer(model, "index", np.int64(0))
    row = edit.insert_before(node, "Gather", [table, index], name="pick", output="row")
    node.replace_input_with(1, row.outputs[0])
    return 1


def nothing(model: ir.Model) -> int:
    return 0


def test_steps_that_work_are_proved_once_together(parse, prove):
    calls = []

    def counted(a: ir.Model, b: ir.Model) -> str | None:
        calls.append(1)
        return prove(a, b)

    model = parse(TEXT)
    result = rewrite(model, {"nothing": nothing, "good": good}, counted)
    assert [(r.step, r.kept, r.nodes_before, r.nodes_after) for r in result.rewrites] == [
        ("good", True, 3, 2)
    ]
    assert len(calls) == 1 and len(model.graph) == 3 and len(result.model.graph) == 2


def test_nothing_changed_is_not_proved(parse):
    result = rewrite(parse(TEXT), {"nothing": nothing}, lambda a, b: pytest.fail("proved"))
    assert result.rewrites == () and len(result.model.graph) == 3


def test_a_wrong_step_is_taken_back_and_the_others_stay(parse, prove, caplog):
    model = parse(TEXT)
    result = rewrite(model, {"wrong": wrong, "good": good}, prove)
    assert [(r.step, r.kept) for r in result.rewrites] == [("wrong", False), ("good", True)]
    assert "relative difference" in result.rewrites[0].why
    assert [n.op_type for n in result.model.graph] == ["Mul", "Exp"]
    assert prove(model, result.model) is None
    assert "wrong: taken back" in caplog.text


def test_a_growing_step_is_taken_back(parse, prove, caplog):
    model = parse(TEXT)
    result = rewrite(model, {"growing": growing, "good": good}, prove)
    assert [(r.step, r.kept) for r in result.rewrites] == [("growing", False), ("good", True)]
    assert "grew by 8000 bytes" in result.rewrites[0].why and result.rewrites[0].bytes_after == 8008
    assert edit.weight_bytes(result.model) == 8
    assert "growing: taken back" in caplog.text


def test_a_step_that_renames_an_output_is_taken_back(parse):
    def renames(model: ir.Model) -> int:
        model.graph.outputs[0].name = "z"
        return 1

    result = rewrite(parse(TEXT), {"renames": renames}, lambda a, b: None)
    assert [v.name for v in result.model.graph.outputs] == ["y"]
    assert not result.rewrites[0].kept and "outputs changed" in result.rewrites[0].why
