"""An If with a known condition becomes the way it takes."""

from __future__ import annotations

import pytest

from deploy.graph.branches import choose_branches

IF = """g (float[n,3] x) => (float[n,a] y) <bool c = {%d}, float[3] w = {1, 2, 3}> {
    h = Exp(x)
    y = If (c) <
        then_branch = t () => (float[n,a] r) <float[3] k = {4, 5, 6}> { h2 = Add(h, k) r = Mul(h2, w) },
        else_branch = e () => (float[n,a] s) { i = Neg(h) s = Concat <axis = 1> (i, h) }
    >
}"""


@pytest.mark.parametrize(("condition", "ops"), [(1, ["Exp", "Add", "Mul"]), (0, ["Exp", "Neg", "Concat"])])
def test_the_chosen_way_stands_in_its_place(parse, prove, condition: int, ops: list[str]) -> None:
    model = parse(IF % condition)
    before = model.clone()
    assert choose_branches(model) == 1
    assert [node.op_type for node in model.graph] == ops
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert len({node.name for node in model.graph}) == 3
    assert prove(before, model) is None
    assert choose_branches(model) == 0


def test_a_branch_that_only_hands_on_what_is_outside(parse, prove) -> None:
    model = parse("""g (float[n,3] x) => (float[n,3] y) <bool c = {1}> {
        y = If (c) <then_branch = t () => (float[n,3] r) { r = Identity(x) },
                    else_branch = e () => (float[n,3] s) { s = Neg(x) }> }""")
    before = model.clone()
    assert choose_branches(model) == 1
    assert prove(before, model) is None


def test_names_of_the_branch_that_are_taken_outside_change(parse, prove) -> None:
    model = parse("""g (float[n,3] x) => (float[n,3] y, float[n,3] r) <bool c = {0}> {
        r = Exp(x)
        y = If (c) <then_branch = t () => (float[n,3] u) { u = Abs(x) },
                    else_branch = e () => (float[n,3] u) { u = Neg(r) }>
    }""")
    before = model.clone()
    choose_branches(model)
    assert prove(before, model) is None


def test_a_computed_condition_stays(parse) -> None:
    model = parse("""g (float[n,3] x, bool c) => (float[n,3] y) {
        y = If (c) <then_branch = t () => (float[n,3] r) { r = Neg(x) },
                    else_branch = e () => (float[n,3] s) { s = Abs(x) }> }""")
    assert choose_branches(model) == 0
