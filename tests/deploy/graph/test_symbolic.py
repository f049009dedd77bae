import math

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.graph import shapes, symbolic
from deploy.graph.symbolic import Size

N = Size(1, ("n",))


def known(body: str, name: str, header: str = "float[n,3,h,4] x") -> list[str | None]:
    model = shapes.infer(
        ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> g ({header}) => (int64[k] y) {body}')
    )
    found = {v.name: a for v, a in symbolic.values(model).items()}
    return [None if s is None else str(s) for s in found[name].flat]


sizes = st.builds(
    lambda f, s: Size(f, tuple(sorted(s))) if f else Size(0),
    st.integers(0, 12),
    st.lists(st.sampled_from("nmh")),
)


@given(sizes, sizes, st.fixed_dictionaries({c: st.integers(0, 9) for c in "nmh"}))
def test_products_agree_with_numbers(a: Size, b: Size, numbers: dict[str, int]):
    def number(s: Size) -> int:
        return s.factor * math.prod(numbers[c] for c in s.symbols)

    assert number(a.times(b)) == number(a) * number(b)
    quotient = a.over(b)
    if quotient is not None and number(b):
        assert number(quotient) * number(b) == number(a)
    assert symbolic.size(ir.Shape([str(a)])[0] if a.symbols else a.factor) == a


def test_a_foreign_expression_stands_for_itself():
    assert symbolic.size(ir.SymbolicDim("n + 1")) == Size(1, ("n + 1",))
    assert symbolic.size(ir.SymbolicDim(None)) is None


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("{ y = Shape(x) }", ["n", "3", "h", "4"]),
        ("{ y = Shape<start = 1, end = -1>(x) }", ["3", "h"]),
        ("<int64[1] i = {0}, int64[1] m = {-1}> { s = Shape(x) f = Gather(s, i) y = Concat<axis = 0>(f, m) }",
         ["n", "-1"]),
        ("<int64[1] a = {3}, int64[1] b = {-9}, int64[1] ax = {0}, int64[1] st = {-1}>"
         "{ s = Shape(x) y = Slice(s, a, b, ax, st) }", ["4", "h", "3", "n"]),
        ("<int64 i = {0}, int64 k = {6}, int64[1] z = {0}>"
         "{ s = Shape(x) f = Gather(s, i) t = Mul(f, k) y = Unsqueeze(t, z) }", ["6*n"]),
        ("{ s = Shape(x) y = ReduceProd(s) }", ["12*h*n"]),
        ("<int64[4] m = {-1, 3, -1, -1}, int64[4] one = {1, 1, 1, 1}>"
         "{ s = Shape(x) c = Equal(m, s) y = Where(c, one, s) }", ["n", "1", "h", "4"]),
        ("<int64[1] one = {1}> { s = Shape(x) y = Add(s, one) }", [None, "4", None, "5"]),
    ],
)  # fmt: skip
def test_elements(body: str, wanted: list[str | None]):
    assert known(body, "y") == wanted


def test_equal_of_a_free_dimension_and_a_positive_number_is_open():
    assert known("<int64[4] m = {1, 3, 1, 4}> { s = Shape(x) c = Equal(s, m) y = Cast<to = 7>(c) }", "c") == [
        None, "1", None, "1",
    ]  # fmt: skip
