import numpy as np
import pytest
import torch
from torch.nn import functional

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("a", "b"), [((3, 4), (4, 5)), ((4,), (4, 2)), ((2, 3, 4), (4,)), ((2, 1, 3, 4), (5, 4, 2))]
)
def test_matmul(one_node, a, b):
    node = one_node("MatMul", real(*a), real(*b))
    node.agrees()
    node.gradients()


def test_no_rows(one_node):
    one_node("MatMul", real(0, 3), real(3, 2)).agrees()
    one_node("Gemm", real(0, 3), real(3, 2), real(2)).agrees()


GEMM = {
    "layer": ([real(3, 4), real(5, 4), real(5)], {"transB": 1}),
    "no bias": ([real(3, 4), real(4, 5)], {}),
    "scaled, no bias": ([real(3, 4), real(5, 4)], {"transB": 1, "alpha": 0.3}),
    "turned": ([real(4, 3), real(4, 5), real(3, 1)], {"transA": 1, "beta": 2.0}),
    "a number": ([real(3, 4), real(4, 5), np.float32(2)], {"alpha": 0.5, "beta": 0.5}),
    "both turned": ([real(4, 3), real(5, 4), real(3, 5)], {"transA": 1, "transB": 1}),
    "row": ([real(3, 4), real(4, 5), real(1, 5)], {}),
}


@pytest.mark.parametrize("name", GEMM)
def test_gemm(one_node, name):
    inputs, attributes = GEMM[name]
    node = one_node("Gemm", *inputs, **attributes)
    node.agrees()
    node.gradients()


def test_gemm_of_whole_numbers(one_node):
    a, b, c = (RNG.integers(0, 9, shape, np.int32) for shape in ((3, 4), (4, 5), (5,)))
    found = one_node("Gemm", a, b, c, alpha=2.0).torch()[0]
    assert found.tolist() == (2 * (a @ b) + c).tolist()


def test_a_layer_is_torchs_bit_for_bit(one_node):
    inputs, attributes = GEMM["layer"]
    found = one_node("Gemm", *inputs, **attributes).torch()[0]
    assert torch.equal(found, functional.linear(*map(torch.from_numpy, inputs)))


@pytest.mark.parametrize(
    "zeros", [(None, None), (np.uint8(3), np.int8(-4)), (None, np.array([1, 2, -3], np.int8))]
)
def test_integers_are_exact(one_node, zeros):
    a, b = RNG.integers(0, 256, (2, 4), np.uint8), RNG.integers(-128, 128, (4, 3), np.int8)
    one_node("MatMulInteger", a, b, *zeros).agrees(0)


def test_a_zero_point_for_each_row(one_node):
    a, b = RNG.integers(0, 256, (2, 4), np.uint8), RNG.integers(0, 256, (4, 3), np.uint8)
    found = one_node("MatMulInteger", a, b, np.array([5, 200], np.uint8)).torch()[0]
    assert found.tolist() == ((a.astype(int) - [[5], [200]]) @ b.astype(int)).tolist()


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [("ij,jk->ik", [(2, 3), (3, 4)]), ("bij, bjk -> bik", [(2, 3, 4), (2, 4, 2)]),
     ("...ii->...i", [(2, 3, 3)]), ("ij,ij", [(2, 3), (2, 3)]),
     ("i,j,k->kji", [(2,), (3,), (2,)]), ("ij->ji", [(2, 3)])],
)  # fmt: skip
def test_einsum(one_node, equation, shapes):
    node = one_node("Einsum", *(real(*shape) for shape in shapes), equation=equation)
    node.agrees()
    node.gradients()


def test_determinants(one_node):
    node = one_node("Det", real(2, 3, 3))
    node.agrees()
    node.gradients()


def test_autocast(one_node):
    inputs, attributes = GEMM["row"]
    node = one_node("Gemm", *inputs, **attributes)
    with torch.autocast("cpu", torch.bfloat16):
        assert node.torch()[0].dtype == torch.bfloat16
