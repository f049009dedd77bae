"""Gathers of constant places as slices, against NumPy's take."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.graph import shapes
from deploy.graph.gathered import MOST_SLICES, gather_as_slices

SIZES = (3, 5, 4)
ARRAY = np.arange(np.prod(SIZES), dtype=np.float32).reshape(SIZES)


def model_of(parse, indices: np.ndarray, axis: int, *, kind: str = "float", sizes: str = "3,5,4") -> ir.Model:
    text = f"g ({kind}[{sizes}] x) => ({kind} y) {{ [pick] y = Gather<axis = {axis}>(x, i) }}"
    return shapes.infer(parse(text, {"i": indices}))


@pytest.mark.parametrize(
    ("indices", "axis", "operations"),
    [
        (np.int64(2), 1, ["Slice", "Squeeze"]),
        (np.int64(-1), -2, ["Slice", "Squeeze"]),
        (np.array([2], np.int64), 0, ["Slice"]),
        (np.array([1, 2, 3], np.int64), 1, ["Slice"]),
        (np.array([0, 2, 4], np.int64), 1, ["Slice"]),
        (np.array([4, 0, 1], np.int32), 1, ["Slice", "Slice", "Concat"]),
        (np.array([1, 1], np.int64), 2, ["Slice", "Slice", "Concat"]),
        (np.array([3, 2, 1], np.int64), 2, ["Slice", "Slice", "Slice", "Concat"]),
    ],
    ids=str,
)
def test_what_is_gathered_is_sliced(
    parse, run, indices: np.ndarray, axis: int, operations: list[str]
) -> None:
    model = model_of(parse, np.asarray(indices), axis)
    assert gather_as_slices(model) == 1
    assert [node.op_type for node in model.graph] == operations
    assert model.graph[-1].name == "pick" and model.graph.outputs[0].name == "y"
    (found,) = run(model, {"x": ARRAY})
    np.testing.assert_array_equal(found, ARRAY.take(indices, axis))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-5, 4), min_size=1, max_size=12))
def test_any_places(parse, run, places: list[int]) -> None:
    model = model_of(parse, np.array(places, np.int64), 1)
    done = gather_as_slices(model)
    assert sum(node.op_type == "Slice" for node in model.graph) <= MOST_SLICES
    assert done == (0 if any(node.op_type == "Gather" for node in model.graph) else 1)
    (found,) = run(model, {"x": ARRAY})
    np.testing.assert_array_equal(found, ARRAY.take(places, 1))


@pytest.mark.parametrize(
    ("indices", "options"),
    [
        (np.array([[0, 1]], np.int64), {}),  # a table of places
        (np.array([0, 9], np.int64), {}),  # beyond the end: it fails when it runs
        (np.array([], np.int64), {}),
        (np.int64(0), {"kind": "int64"}),  # sizes and ids are no business of an accelerator
        (np.int64(0), {"sizes": "n,5,4"}),  # -1 cannot be told from a size that is free
    ],
)
def test_what_stays(parse, indices: np.ndarray, options: dict[str, str]) -> None:
    model = model_of(parse, np.asarray(indices), 0, **options)
    assert gather_as_slices(model) == 0
    assert [node.op_type for node in model.graph] == ["Gather"]


def test_places_found_while_running_and_constants_stay(parse) -> None:
    model = parse(
        "g (float[3, 4] x, int64[2] i) => (float y, float z) { y = Gather(x, i) z = Gather(w, j) }",
        {"w": np.ones((3, 4), np.float32), "j": np.array([0], np.int64)},
    )
    assert gather_as_slices(shapes.infer(model)) == 0
