"""Cuts, pads, gathers and scatters, also of what lies channels last, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

KINDS = {"float32": "float", "int64": "int64", "int32": "int32", "bool": "bool"}
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.5, shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def declared(arrays: dict[str, np.ndarray], first: str = "") -> str:
    """Types of graph inputs; ``first`` in the place of the first size of ``x``."""
    given = []
    for name, array in arrays.items():
        sizes = [str(size) for size in array.shape]
        if name == "x" and first:
            sizes[0] = first
        given.append(f"{KINDS[array.dtype.name]}[{','.join(sizes)}] {name}")
    return ", ".join(given)


def behind_a_convolution(ran: Callable[..., Any], body: str, constants: dict[str, np.ndarray]) -> list[str]:
    """``body`` turns ``a``, an image of 4 channels and a free batch, into ``y``; the operators between."""
    feeds = {"x": floats(2, 4, 6, 5)}
    constants = {"w": floats(4, 4, 1, 1), **constants}
    head = f"({declared({**feeds, **constants}, 'n')}) => (float[d0,d1,d2,d3] y)"
    found = ran(f"{head} {{ a = Conv(x, w) {body} }}", feeds, constants)
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-5)
    assert found.operators[:2] == ["TRANSPOSE", "CONV_2D"] and found.operators[-1] == "TRANSPOSE"
    return list(found.operators[2:-1])


@pytest.mark.parametrize(
    ("pads", "mode", "operators"),
    [
        ((0, 0, 1, 0, 0, 0, 2, 2), "constant", ["PAD"]),
        ((0, 1, 0, 0, 0, 2, 0, 0), "constant", ["PAD"]),
        ((0, 0, -1, 0, 0, 0, 0, -3), "constant", ["STRIDED_SLICE"]),
        ((0, 0, -1, 2, 0, 0, 0, 0), "constant", ["STRIDED_SLICE", "PAD"]),
        ((0, 0, 1, 2, 0, 0, 3, 0), "reflect", ["MIRROR_PAD"]),
        ((0, 0, 1, 0, 0, 0, 1, 0), "edge", ["STRIDED_SLICE", "STRIDED_SLICE", "CONCATENATION"]),
        ((0, 0, 0, 3, 0, 0, 0, 3), "edge", ["GATHER"]),
        ((0, 0, 0, 6, 0, 0, 0, 7), "wrap", ["GATHER"]),
    ],
)
def test_pads(pads: tuple[int, ...], mode: str, operators: list[str], ran: Callable[..., Any]) -> None:
    found = behind_a_convolution(ran, f'y = Pad<mode = "{mode}">(a, p)', {"p": ints(*pads)})
    assert [code for code in found if code != "RESHAPE"] == operators


def test_a_pad_with_another_number(ran: Callable[..., Any]) -> None:
    constants = {"p": ints(0, 0, 1, 0, 0, 0, 1, 0), "c": np.array([7.5], np.float32)}
    assert behind_a_convolution(ran, "d = Squeeze(c) y = Pad(a, p, d)", constants) == ["PADV2"]


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ((1,), (3,), (1,), (1,)),
        ((-1, -2), (-9, -100), (1, 2), (-1, -2)),
        ((0, -3), (2**62, 4), (3, 2), (2, 1)),
        ((-1,), (2**62,), (0,), (1,)),
    ],
)
def test_slices(
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    axes: tuple[int, ...],
    steps: tuple[int, ...],
    ran: Callable[..., Any],
) -> None:
    constants = {"s": ints(*starts), "e": ints(*ends), "i": ints(*axes), "t": ints(*steps)}
    found = behind_a_convolution(ran, "y = Slice(a, s, e, i, t)", constants)
    assert found == ["STRIDED_SLICE"]


def test_bounds_of_a_slice_that_are_computed(ran: Callable[..., Any]) -> None:
    feeds = {"x": floats(2, 5), "k": ints(3)}
    constants = {"p": floats(1, 9), "zero": ints(0), "one": ints(1)}
    body = "y = Slice(p, zero, k, one) z = Relu(x)"
    given = f"({declared({**feeds, **constants})}) => (float[1,m] y, float[2,5] z) {{ {body} }}"
    found = ran(given, feeds, constants)
    np.testing.assert_array_equal(found.got["y"], found.want["y"])


def test_parts_of_an_image_are_slices_and_equal_parts_a_split(ran: Callable[..., Any]) -> None:
    body = "b, c = Split<axis = 1>(a, l) d = Relu(c) y = Concat<axis = 1>(b, d)"
    found = behind_a_convolution(ran, body, {"l": ints(1, 3)})
    assert found == ["STRIDED_SLICE", "STRIDED_SLICE", "RELU", "CONCATENATION"]
    assert behind_a_convolution(ran, body, {"l": ints(2, 2)}) == ["SPLIT", "RELU", "CONCATENATION"]


def test_many_operands_are_joined_four_at_a_time(ran: Callable[..., Any]) -> None:
    body = f"b = Neg(a) y = Concat<axis = 1>({', '.join('ab' * 5)})"
    found = behind_a_convolution(ran, body, {})
    assert found == ["NEG"] + ["CONCATENATION"] * 4


@pytest.mark.parametrize(
    ("indices", "axis", "operators"),
    [
        (np.array(-1), 1, ["STRIDED_SLICE", "RESHAPE"]),
        (np.array([1, 2, 3]), 1, ["STRIDED_SLICE"]),
        (np.array([2, 0, -1]), 1, ["GATHER"]),
        (np.array([[0], [4]]), 3, ["GATHER"]),
    ],
)
def test_constant_indices(
    indices: np.ndarray, axis: int, operators: list[str], ran: Callable[..., Any]
) -> None:
    feeds, constants = {"x": floats(2, 4, 6, 5)}, {"i": indices.astype(np.int64)}
    sizes = ",".join(f"d{n}" for n in range(3 + indices.ndim))
    body = f"y = Gather<axis = {axis}>(x, i)"
    given = f"({declared({**feeds, **constants}, 'n')}) => (float[{sizes}] y) {{ {body} }}"
    given = given.replace("int64[] i", "int64[1] i")
    if not indices.ndim:
        constants["i"] = constants["i"].reshape(())
    found = ran(given, feeds, constants)
    np.testing.assert_array_equal(found.got["y"], found.want["y"])
    assert found.operators == operators


@pytest.mark.parametrize("kind", ["float32", "int64", "int32", "bool"])
@pytest.mark.parametrize(
    ("body", "indices", "updates", "shape"),
    [
        ("y = Gather<axis = 1>(x, i)", [[3, -1], [0, 2]], None, (3, 2, 2)),
        ("y = GatherElements<axis = 1>(x, i)", [[3, -1], [0, 2], [1, 1]], None, (3, 2)),
        ("y = GatherND(x, i)", [[0, -1], [2, 2]], None, (2,)),
        ("y = GatherND<batch_dims = 1>(x, i)", [[0], [-1], [2]], None, (3,)),
        ("y = ScatterND(x, i, u)", [[0, -1], [2, 2]], (2,), (3, 4)),
        ("y = ScatterND(x, i, u)", [[-1]], (1, 4), (3, 4)),
        ("y = ScatterElements<axis = 1>(x, i, u)", [[3, 1], [0, -2], [1, 2]], (3, 2), (3, 4)),
    ],
)
@pytest.mark.parametrize("constant", [True, False])
def test_indices_of_every_type_known_or_computed(
    body: str,
    indices: list[list[int]],
    updates: tuple[int, ...] | None,
    shape: tuple[int, ...],
    kind: str,
    constant: bool,
    ran: Callable[..., Any],
) -> None:
    data = RNG.integers(0, 2 if kind == "bool" else 9, (3, 4)).astype(kind)
    extra = {"i": np.array(indices, np.int64)}
    if updates is not None:
        extra["u"] = RNG.integers(0, 2 if kind == "bool" else 9, updates).astype(kind)
    feeds = {"x": data} | ({} if constant else extra)
    sizes = ",".join(map(str, shape))
    given = f"({declared({'x': data, **extra})}) => ({KINDS[kind]}[{sizes}] y) {{ {body} }}"
    found = ran(given, feeds, extra if constant else {})
    np.testing.assert_array_equal(found.got["y"], found.want["y"])


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_scattered_and_combined(reduction: str, ran: Callable[..., Any]) -> None:
    feeds, constants = {"x": floats(3, 4)}, {"i": ints(2, 0).reshape(2, 1), "u": floats(2, 4)}
    body = f'y = ScatterND<reduction = "{reduction}">(x, i, u)'
    found = ran(f"({declared({**feeds, **constants})}) => (float[3,4] y) {{ {body} }}", feeds, constants)
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-6)
