"""Scales of groups of weights: bounds and properties of the search, and ONNX Runtime on the graph."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deploy.execute.reference import open_graph
from deploy.graph.qdq import data_digest, dequantize_array, insert, read_tensors
from deploy.quantize.groups import quantize_blocks, quantize_groups
from deploy.spec.plan import Plan, TensorPlan, differences
from deploy.spec.tensors import RANGES

MATRICES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(2, 70), st.integers(1, 5)),
    elements=st.floats(-8, 8, width=32, allow_subnormal=False),
)


def normal(size: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, (size, columns)).astype(np.float32)


def errors(array: np.ndarray, group: int, bits: int) -> np.ndarray:
    """The squared error that each group is left with."""
    params, codes = quantize_groups(array, group, bits)
    return by_group(np.square(dequantize_array(codes, params).astype(np.float64) - array), group)


def by_group(squares: np.ndarray, group: int) -> np.ndarray:
    return np.add.reduceat(squares, np.arange(0, len(squares), group), axis=0)


def covering(array: np.ndarray, group: int, limit: int) -> np.ndarray:
    """The same where the largest magnitude of each group is the largest code: nothing is clipped."""
    starts = np.arange(0, len(array), group)
    most = np.maximum.reduceat(np.abs(array), starts, axis=0).repeat(group, axis=0)[: len(array)]
    scale = np.maximum(most.astype(np.float64) / limit, 1e-12)
    return by_group(np.square(np.rint(array / scale) * scale - array), group)


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.sampled_from([2, 16, 32]))
def test_at_eight_bits_no_weight_is_off_by_more_than_half_a_step(array, group):
    params, codes = quantize_groups(array, group, 8)
    assert (params.type, params.axis, params.group) == ("int8", 0, group)
    assert params.scale_shape(array.shape) == (-(-len(array) // group), array.shape[1])
    assert codes.shape == array.shape
    assert np.abs(codes.astype(int)).max() <= 127
    step = (
        np.asarray(params.scale).reshape(params.scale_shape(array.shape)).repeat(group, axis=0)[: len(array)]
    )
    assert (np.abs(dequantize_array(codes, params) - array) <= 0.5001 * step + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(MATRICES, st.sampled_from([2, 16, 32]))
def test_at_four_bits_as_a_whole_no_more_is_lost_than_by_covering_everything(array, group):
    params, codes = quantize_groups(array, group, 4)
    low, high = RANGES[params.type]
    assert low <= codes.min() <= codes.max() <= high
    assert errors(array, group, 4).sum() <= covering(array, group, 7).sum() * (1 + 1e-4) + 1e-9


def test_nearly_every_group_loses_less_than_by_covering():
    array = normal(512, 64)
    found, plain = errors(array, 128, 4), covering(array, 128, 7)
    assert (found < plain).mean() > 0.95
    assert found.sum() < 0.8 * plain.sum()


def test_the_scale_is_the_least_squares_one_for_its_codes():
    array = normal(256, 32)
    params, codes = quantize_groups(array, 64, 4)
    q = codes.astype(np.float64).reshape(4, 64, 32) - np.asarray(params.zero_point).reshape(4, 1, 32)
    w = array.astype(np.float64).reshape(4, 64, 32)
    fitted = (w * q).sum(axis=1) / np.square(q).sum(axis=1)
    np.testing.assert_allclose(np.asarray(params.scale).reshape(4, 32), fitted, rtol=0.02)


def test_weights_of_one_sign_get_zero_points():
    array = np.abs(normal(256, 16)) + np.float32(0.05)
    params, codes = quantize_groups(array, 64, 4)
    assert params.type == "uint4"
    assert (codes.min(), codes.max()) <= (15, 15)
    assert errors(array, 64, 4).sum() < 0.4 * covering(array, 64, 7).sum()


def test_groups_do_not_know_each_other():
    top, bottom = normal(128, 8), 100 * normal(128, 8, seed=1)
    together, codes = quantize_groups(np.concatenate([top, bottom]), 128, 4)
    for part, array in enumerate((top, bottom)):
        alone, own = quantize_groups(array, 128, 4)
        assert together.scale[8 * part : 8 * part + 8] == alone.scale
        np.testing.assert_array_equal(codes[128 * part : 128 * part + 128], own)


def test_twice_the_weights_have_the_same_codes_and_twice_the_scale():
    array = normal(96, 8)
    once, codes = quantize_groups(array, 32, 4)
    twice, same = quantize_groups(array * 2, 32, 4)
    np.testing.assert_array_equal(codes, same)
    np.testing.assert_array_equal(2 * np.asarray(once.scale), twice.scale)


def test_smaller_groups_lose_less():
    array = np.random.default_rng(0).standard_t(3, (1024, 32)).astype(np.float32)
    lost = [errors(array, group, 4).sum() for group in (32, 128, 512)]
    assert lost == sorted(lost)


@pytest.mark.parametrize(("bits", "group", "size"), [(8, 32, 96), (4, 32, 96), (4, 16, 40), (4, 128, 96)])
@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_onnx_runtime_reads_the_graph_so_and_the_plan_comes_back(graph, bits, group, size, shift):
    net = graph(f"g (float[N,{size}] x) => (float[N,24] y) {{ [m] y = MatMul(x, a) }}", {"a": (size, 24)})
    array = normal(size, 24) + np.float32(shift)
    params, codes = quantize_groups(array, group, bits)
    tensors = {"a": TensorPlan(**params.model_dump(), origin="weight", digest=data_digest(codes))}
    written = insert(net, tensors, {"a": codes})
    plan = Plan(graph_sha256="", target="", runtime="", tensors=tensors)
    assert differences(plan, plan.model_copy(update={"tensors": read_tensors(written)})) == []
    x = np.eye(size, dtype=np.float32)
    with open_graph(written, optimised=False) as session:
        got = session.run({"x": x})["y"]
    np.testing.assert_allclose(got, dequantize_array(codes, params), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_convolution_has_groups_for_each_place_of_its_kernel(graph, bits, half) -> None:
    """Place by place what a matrix of its own would have; ONNX Runtime reads the graph so."""
    array = normal(48 * 64, 9).reshape(48, 64, 3, 3)
    params, codes = quantize_blocks(array, 1, 32, bits, half=half)
    scale = np.array(params.scale).reshape(params.scale_shape(array.shape))
    assert scale.shape == (48, 2, 3, 3)
    if bits == 8:  # at 4 bits zero points are a choice for the whole tensor
        alone, own = quantize_groups(np.ascontiguousarray(array[:, :, 1, 2].T), 32, bits, half=half)
        np.testing.assert_array_equal(codes[:, :, 1, 2], own.T)
        np.testing.assert_array_equal(scale[:, :, 1, 2].T.ravel(), alone.scale)
    assert (scale.astype(np.float16) == scale).all() == half
    text = "g (float[N,64,5,5] x) => (float[N,48,5,5] y) { [c] y = Conv<pads=[1,1,1,1]>(x, w) }"
    model = graph(text, {"w": array})
    plan = TensorPlan(**params.model_dump(), origin="weight", digest=data_digest(codes))
    written = insert(model, {"w": plan}, {"w": codes})
    assert read_tensors(written)["w"].scale == params.scale
    feeds = {"x": np.random.default_rng(1).normal(0, 1, (2, 64, 5, 5)).astype(np.float32)}
    values = dequantize_array(codes, params)
    dense = graph(text, {"w": values})
    with open_graph(written, optimised=False) as one, open_graph(dense, optimised=False) as other:
        np.testing.assert_allclose(one.run(feeds)["y"], other.run(feeds)["y"], atol=1e-5)
    assert np.abs(values - array).max() < (0.03 if bits == 4 else 0.002)
