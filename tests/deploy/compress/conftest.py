"""Small graphs with weights, as in a trained network: channels of unequal size, inputs that are alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest

from deploy.data.dataset import Dataset, open_dataset
from deploy.execute.reference import open_graph
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs

Shapes = Mapping[str, tuple[int, ...]]


def made(text: str, shapes: Shapes, seed: int = 0) -> ir.Model:
    """The graph with weights drawn for these names, nodes named, shapes inferred."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    draw = np.random.default_rng(seed)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
    for value in dict.fromkeys(v for node in model.graph for v in node.inputs if v is not None):
        if value.name in shapes:
            shape = shapes[value.name]
            array = draw.standard_normal(shape) / max(np.prod(shape[1:]), 1) ** 0.5
            if len(shape) > 1:  # some channels matter more than others
                array *= np.exp(draw.standard_normal(shape[0]))[:, None].reshape(-1, *[1] * (len(shape) - 1))
                array *= np.exp(draw.standard_normal(shape[1])).reshape(1, -1, *[1] * (len(shape) - 2))
            if value.name.startswith("variance"):
                array = np.abs(array) + 0.5
            tensor = ir.tensor(array.astype(np.float32), name=value.name)
            value.const_value, value.shape, value.type = tensor, ir.Shape(shape), ir.TensorType(tensor.dtype)
            model.graph.initializers[value.name] = value
    return infer(model)


def computed(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output, by ONNX Runtime."""
    with open_graph(model, optimised=False) as session:
        return next(iter(session.run(dict(feeds)).values())).astype(np.float64)


def samples(model: ir.Model, count: int = 64, seed: int = 1) -> Dataset:
    """Inputs whose channels and positions are like each other, as those of images are."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for value in model.graph.inputs:
        shape = [n if isinstance(n, int) else count for n in value.shape]
        array = draw.standard_normal(shape)
        mix = np.random.default_rng(0).standard_normal((shape[1], shape[1])) / shape[1] ** 0.5
        array = np.moveaxis(np.tensordot(array, mix + np.eye(shape[1]) / 4, ([1], [0])), -1, 1)
        arrays[value.name] = np.cumsum(array, axis=-1).astype(np.float32)
    return open_dataset(arrays, tensor_specs(model.graph.inputs))


RESIDUAL = """g (float[n,8,6,6] x) => (float[n,8] y) {
    a = Conv <pads=[1,1,1,1]> (x, w1)
    b = BatchNormalization (a, scale1, shift1, mean1, variance1)
    c = Relu (b)
    d = Conv <pads=[1,1,1,1]> (c, w2, b2)
    e = Relu (d)
    f = Conv <pads=[1,1,1,1]> (e, w3)
    g = BatchNormalization (f, scale3, shift3, mean3, variance3)
    h = Add (g, c)
    i = Relu (h)
    j = GlobalAveragePool (i)
    k = Flatten (j)
    y = Gemm <transB=1> (k, w4, b4)
}"""
RESIDUAL_SHAPES: Shapes = {
    "w1": (16, 8, 3, 3), "w2": (24, 16, 3, 3), "b2": (24,), "w3": (16, 24, 3, 3), "w4": (8, 16), "b4": (8,),
    **{f"{name}{i}": (16,) for name in ("scale", "shift", "mean", "variance") for i in (1, 3)},
}  # fmt: skip

ENCODER = """g (float[n,5,12] x) => (float[n,3] y) {
    t = MatMul (x, embed)
    s = Add (t, place)
    q = MatMul (s, wq)
    k = MatMul (s, wk)
    v = MatMul (s, wv)
    kt = Transpose <perm=[0,2,1]> (k)
    qk = MatMul (q, kt)
    p = Softmax (qk)
    o = MatMul (p, v)
    oo = MatMul (o, wo)
    r = Add (s, oo)
    n1 = LayerNormalization (r, gamma, beta)
    u = MatMul (n1, wu)
    ub = Add (u, bu)
    ug = Gelu (ub)
    dd = MatMul (ug, wd)
    z = Add (n1, dd)
    axes = Constant <value_ints=[1]> ()
    m = ReduceMean <keepdims=0> (z, axes)
    y = Gemm (m, head, bias)
}"""
ENCODER_SHAPES: Shapes = {
    "embed": (12, 16), "place": (1, 5, 16), "wq": (16, 16), "wk": (16, 16), "wv": (16, 8), "wo": (8, 16),
    "gamma": (16,), "beta": (16,), "wu": (16, 32), "bu": (32,), "wd": (32, 16), "head": (16, 3), "bias": (3,),
}  # fmt: skip


@pytest.fixture
def build() -> Callable[..., ir.Model]:
    return made


@pytest.fixture
def run() -> Callable[..., np.ndarray]:
    return computed


@pytest.fixture
def data() -> Callable[..., Dataset]:
    return samples


@pytest.fixture
def residual() -> ir.Model:
    """Convolutions with batch norm and a shortcut."""
    return made(RESIDUAL, RESIDUAL_SHAPES)


@pytest.fixture
def encoder() -> ir.Model:
    """Attention with one head, a layer norm, a feed-forward part."""
    return made(ENCODER, ENCODER_SHAPES)
