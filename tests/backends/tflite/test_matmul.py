"""Products of matrices of every shape against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from deploy.errors import UnsupportedError

pytest.importorskip("ai_edge_litert")


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0, 0.5, shape).astype(np.float32)


def ends(inputs: dict[str, np.ndarray], body: str, rank: int) -> str:
    declared = ", ".join(f"float[{','.join(map(str, a.shape))}] {n}" for n, a in inputs.items())
    sizes = ",".join(f"d{axis}" for axis in range(rank))
    return f"({declared}) => (float[{sizes}] y) {{ {body} }}"


def agrees(
    ran: Callable, body: str, feeds: dict[str, np.ndarray], constants: dict[str, np.ndarray], rank: int
):
    found = ran(ends({**feeds, **constants}, body, rank), feeds, constants)
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-5)
    assert found.got["y"].shape == found.want["y"].shape
    return found.operators


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((4,), (4,)),
        ((4,), (3, 4, 5)),
        ((3, 5, 4), (4,)),
        ((2, 3, 1, 1, 5, 4), (2, 3, 3, 2, 4, 5)),
        ((2, 3, 2, 5, 4), (4, 5)),
        ((2, 3, 2, 5, 4), (2, 3, 2, 4, 5)),
        ((2, 3, 2, 5, 4), (2, 4, 5)),
    ],
)
@pytest.mark.parametrize("delegate", [True, False])
def test_two_activations_of_any_ranks(
    a: tuple[int, ...], b: tuple[int, ...], delegate: bool, ran: Callable
) -> None:
    feeds = {"a": floats(*a), "b": floats(*b)}
    rank = np.matmul(feeds["a"], feeds["b"]).ndim
    given = ends(feeds, "y = MatMul(a, b)", rank)
    found = ran(given, feeds, delegate=delegate)
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-5)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    "attributes", ["", "transA = 1", "transB = 1", "transA = 1, transB = 1, alpha = 0.5"]
)
@pytest.mark.parametrize("addend", [None, (), (1,), (5,), (3, 1), (3, 5)])
def test_gemm_in_every_form(
    attributes: str, addend: tuple[int, ...] | None, constant: bool, ran: Callable
) -> None:
    a = floats(4, 3) if "transA" in attributes else floats(3, 4)
    b = floats(5, 4) if "transB" in attributes else floats(4, 5)
    constants = {"b": b} | ({} if addend is None else {"c": np.asarray(floats(*addend or (1,)))})
    if addend == () and constant:
        constants["c"] = constants["c"].reshape(())
    given = f"<{attributes}, beta = 2.0>" if attributes else ""
    body = f"y = Gemm{given}(a, b{'' if addend is None else ', c'})"
    feeds = {"a": a} | ({} if constant else constants)
    agrees(ran, body, feeds, constants if constant else {}, 2)


def test_batches_that_alternate_between_operands_are_refused(ran: Callable) -> None:
    feeds = {"a": floats(2, 1, 3, 2, 5, 4), "b": floats(2, 3, 1, 1, 4, 5)}
    with pytest.raises(UnsupportedError, match=r"MatMul0.*alternate between its operands: expand"):
        ran(ends(feeds, "y = MatMul(a, b)", 6), feeds)


def test_a_sum_with_a_constant_row_is_the_bias(ran: Callable) -> None:
    body = "m = MatMul(x, w) s = Add(b, m) y = Relu(s)"
    operators = agrees(ran, body, {"x": floats(2, 3, 4)}, {"w": floats(4, 5), "b": floats(5)}, 3)
    assert operators == ["FULLY_CONNECTED"]


def test_a_sum_with_anything_else_stays_one(ran: Callable) -> None:
    body = "m = MatMul(x, w) y = Add(b, m)"
    operators = agrees(ran, body, {"x": floats(2, 3, 5)}, {"w": floats(5, 5), "b": floats(3, 5)}, 3)
    assert operators == ["FULLY_CONNECTED", "ADD"]


def test_a_matrix_turned_before_a_product_is_not_turned_twice(ran: Callable) -> None:
    body = "t = Transpose<perm = [0, 2, 1]>(b) y = MatMul(a, t)"
    operators = agrees(ran, body, {"a": floats(2, 3, 4), "b": floats(2, 5, 4)}, {}, 3)
    assert operators == ["BATCH_MATMUL"] or operators == ["RESHAPE", "BATCH_MATMUL"]


@pytest.mark.parametrize(
    ("equation", "a", "b", "fixed"),
    [
        ("bsd,dhk->bshk", (2, 5, 6), (6, 2, 3), True),
        ("bqhd,hdm->bqm", (2, 5, 2, 4), (2, 4, 6), True),
        ("bhqk,bkhd->bqhd", (2, 2, 5, 7), (2, 7, 2, 4), False),
        ("...ij,...jk", (2, 2, 3, 4), (2, 2, 4, 5), False),
        ("i,j->ij", (3,), (4,), False),
        ("abc,abc->", (2, 3, 4), (2, 3, 4), False),
        ("abc,cb->a", (2, 3, 4), (4, 3), True),
        ("abcd,abde->abce", (2, 3, 4, 5), (2, 3, 5, 6), False),
    ],
)
def test_einsum(equation: str, a: tuple[int, ...], b: tuple[int, ...], fixed: bool, ran: Callable) -> None:
    feeds = {"a": floats(*a), "b": floats(*b)}
    rank = np.einsum(equation, feeds["a"], feeds["b"]).ndim
    constants = {"b": feeds.pop("b")} if fixed else {}
    agrees(ran, f'y = Einsum<equation = "{equation}">(a, b)', feeds, constants, rank)
