"""What 2:4 is, and along which axis each product sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.graph.pattern import fits, mask_2_4, products, sparse_2_4


@given(st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_the_mask_keeps_the_two_largest_of_each_four(seed: int, axis: int) -> None:
    array = np.random.default_rng(seed).standard_normal((4, 8, 4))
    kept = mask_2_4(np.abs(array), axis)
    assert sparse_2_4(array * kept, axis)
    rows = np.moveaxis(array, axis, -1).reshape(-1, 4)
    masks = np.moveaxis(kept, axis, -1).reshape(-1, 4)
    for row, mask in zip(rows, masks, strict=True):
        assert mask.sum() == 2
        assert np.abs(row[mask]).min() >= np.abs(row[~mask]).max()


def test_one_number_too_many_is_no_proof() -> None:
    array = np.zeros((3, 8, 2, 2), np.int8)
    array[:, [0, 3, 4, 5]] = 1
    assert sparse_2_4(array, 1)
    array[2, 1, 1, 0] = -1
    assert not sparse_2_4(array, 1)
    assert not sparse_2_4(np.zeros((3, 6)), 1)
    assert sparse_2_4(np.zeros((4, 6)), 0)


@pytest.mark.parametrize(
    ("text", "shape", "axis", "whole"),
    [
        ("g (float[2,8,5,5] x) => (float[2,4,3,3] y) { y = Conv(x, w) }", (4, 8, 3, 3), 1, True),
        ("g (float[2,3,5,5] x) => (float[2,4,3,3] y) { y = Conv(x, w) }", (4, 3, 3, 3), 1, False),
        ("g (float[2,8,5,5] x) => (float[2,8,3,3] y) { y = Conv<group=8>(x, w) }", (8, 1, 3, 3), 1, False),
        ("g (float[2,8,5,5] x) => (float[2,8,3,3] y) { y = Conv<group=2>(x, w) }", (8, 4, 3, 3), 1, True),
        ("g (float[2,8] x) => (float[2,3] y) { y = Gemm<transB=1>(x, w) }", (3, 8), 1, True),
        ("g (float[2,8] x) => (float[2,3] y) { y = Gemm(x, w) }", (8, 3), 0, True),
        ("g (float[2,7,8] x) => (float[2,7,3] y) { y = MatMul(x, w) }", (8, 3), 0, True),
    ],
)
def test_the_axis_is_the_one_that_is_summed_over(parse, text, shape, axis, whole) -> None:
    (product,) = products(parse(text, {"w": np.ones(shape, np.float32)}))
    assert (product.weight, product.axis, fits(product)) == ("w", axis, whole)


def test_weights_that_others_read_are_left_alone(parse) -> None:
    text = "g (float[2,8] x) => (float[2,8] y) { a = MatMul(x, w) y = MatMul(a, w) }"
    assert list(products(parse(text, {"w": np.ones((8, 8), np.float32)}))) == []
