"""Rounding while running, written out: against closed forms in float64, and who shares it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.execute.reference import open_graph
from deploy.graph.grouped import rounding_groups, rounding_tensors
from deploy.graph.shapes import infer


def products(size: int) -> ir.Model:
    rows = f"float[n,3,{size}]"
    text = f"""<ir_version: 10, opset_import: ["" : 21]> g ({rows} x) => ({rows} y, {rows} z)
        {{ [p] y = MatMul(x, w) [q] z = MatMul(x, w) }}"""
    model = ir.from_onnx_text(text, initializers=[ir.tensor(np.eye(size, dtype=np.float32), name="w")])
    value = model.graph.initializers["w"]
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((size, size))
    return infer(model)


def run(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    with open_graph(model, optimised=False) as session:
        return session.run({"x": x})


def grouped(x: np.ndarray, group: int) -> np.ndarray:
    """What rounding within groups leaves of ``x``, in float64."""
    out = np.zeros(x.shape)
    for start in range(0, x.shape[-1], group):
        part = x[..., start : start + group].astype(np.float64)
        scale = np.abs(part).max(axis=-1, keepdims=True) / 127
        out[..., start : start + group] = np.rint(part / np.where(scale > 0, scale, 1)) * scale
    return out


@pytest.mark.parametrize(("size", "group"), [(64, 32), (64, 64), (80, 32), (33, 32), (16, 32)])
def test_groups_of_a_row_share_a_scale_the_last_one_is_shorter(size, group):
    x = np.random.default_rng(0).normal(0, 3, (4, 3, size)).astype(np.float32)
    x[0, 0] = 0.0
    x[1, 1, :8] = 0.0
    got = run(rounding_groups(products(size), {"p": group}), x)
    np.testing.assert_allclose(got["y"], grouped(x, group), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got["z"], x, err_msg="q was not asked for")


def test_a_sample_is_rounded_alike_whoever_is_beside_it():
    x = np.random.default_rng(1).normal(0, 1, (5, 3, 64)).astype(np.float32)
    model = rounding_groups(products(64), {"p": 32})
    np.testing.assert_array_equal(run(model, x)["y"][2:3], run(model, x[2:3])["y"])


def test_who_reads_the_same_value_shares_the_rounding():
    model = rounding_groups(products(64), {"p": 32, "q": 32})
    assert sum(node.op_type == "Round" for node in model.graph) == 1
    assert (
        sum(n.op_type == "DynamicQuantizeLinear" for n in rounding_tensors(products(64), {"p", "q"}).graph)
        == 1
    )


def test_a_whole_tensor_is_rounded_by_256_levels_from_its_least_to_its_most():
    x = np.random.default_rng(2).normal(0.5, 1, (4, 3, 64)).astype(np.float32)
    got = run(rounding_tensors(products(64), {"p"}), x)
    low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    want = (np.clip(np.rint(x.astype(np.float64) / scale) + zero, 0, 255) - zero) * scale
    off = np.abs(got["y"] - want)
    assert off.max() <= scale * 1.001
    assert (off > 1e-5).mean() < 0.01, "halves may go either way"
    np.testing.assert_array_equal(got["z"], x)
