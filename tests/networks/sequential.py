"""Small transformers, recurrent networks and networks of linear layers: name -> a function that makes it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from net import Net


def vit(packed: bool = False) -> ir.Model:
    """Patches, a class token put before them, positions, blocks; the class token is read."""
    n = Net()
    x = n.conv(n.input("n", 3, 16, 16), 24, 4, 4)
    x = n.turn(n.shape(x, 0, 24, -1), 0, 2, 1)
    count = n.slice(n.op("Shape", x, c=0), [0], [1], [0])
    token = n.op("Expand", n.random(1, 1, 24), n.op("Concat", count, n.const([1, 24]), axis=0, c=0))
    tokens = n.op("Concat", token, x, axis=1, c=24)
    x = n.op("Add", tokens, n.random(1, (16 // 4) ** 2 + 1, 24, scale=0.2))
    for _ in range(2):
        x = n.encoder(x, 24, 4, packed=packed)
    x = n.op("Gather", n.norm(x, 24), n.const(np.int64(0)), axis=1, c=24)
    return n.model(n.dense(x, 10))


def vit_packed() -> ir.Model:
    """Queries, keys and values from one layer."""
    return vit(packed=True)


def bert() -> ir.Model:
    """Two tables, a mask, a pooler. The sequence's length is free."""
    n = Net()
    ids = n.input("n", "t", dtype=ir.DataType.INT64, name="ids")
    mask = n.input("n", 1, 1, "t", name="mask")
    x = n.op("Gather", n.random(30, 24), ids, c=24)
    kinds = n.op("Mod", ids, n.const(np.int64(2)))
    x = n.norm(n.op("Add", x, n.op("Gather", n.random(2, 24), kinds), c=24), 24)
    for _ in range(2):
        y = n.op("Add", x, n.attention(x, 24, 4, mask))
        x = n.norm(y, 24)
        y = n.linear(n.op("Gelu", n.linear(x, 24, 40)), 40, 24)
        x = n.norm(n.op("Add", x, y), 24)
    pooled = n.op("Gather", x, n.const(np.int64(0)), axis=1, c=24)
    return n.model(n.dense(n.op("Tanh", n.dense(pooled, 24)), 3))


def gpt_turned() -> ir.Model:
    """The table is turned in front of the product that reads it."""
    return gpt(turned=True)


def gpt(turned: bool = False) -> ir.Model:
    """One table gives tokens their vectors and reads the answer: its width can shrink, its rows cannot."""
    n = Net()
    ids = n.input("n", 10, dtype=ir.DataType.INT64, name="ids")
    n.c[ids] = 0
    table = n.random(30, 24, scale=0.3)
    x = n.op("Add", n.op("Gather", table, ids, c=24), n.random(10, 24, scale=0.3))
    mask = n.const(np.triu(np.full((10, 10), -1e4), 1).astype(np.float32))
    for _ in range(2):
        x = n.encoder(x, 24, 4, mask)
    if turned:
        return n.model(n.op("MatMul", n.norm(x, 24), n.turn(table, 1, 0), c=30))
    x = n.op("Reshape", n.norm(x, 24), n.const([-1, 24]), c=24)
    return n.model(n.op("Gemm", x, table, transB=1, c=30))


def _windows(n: Net, x: ir.Value, side: int, window: int, width: int) -> ir.Value:
    many = side // window
    x = n.turn(n.shape(x, -1, many, window, many, window, width), 0, 1, 3, 2, 4, 5)
    return n.shape(x, -1, window * window, width, c=width)


def swin() -> ir.Model:
    """Windows, shifted windows with a bias for every head, four patches merged into one."""
    n = Net()
    width, side, heads = 16, 8, 2
    x = n.turn(n.conv(n.input("n", 3, 16, 16), width, 2, 2), 0, 2, 3, 1)
    for shift in (0, 2):
        y = n.norm(x, width)
        if shift:
            y = _rolled(n, y, shift, width)
        y = _windows(n, y, side, 4, width)
        y = n.attention(y, width, heads, n.random(1, heads, 16, 16))
        y = n.turn(n.shape(y, -1, 2, 2, 4, 4, width), 0, 1, 3, 2, 4, 5)
        y = n.shape(y, -1, side, side, width, c=width)
        if shift:
            y = _rolled(n, y, -shift, width)
        x = n.op("Add", x, y, c=width)
        y = n.op("Gelu", n.linear(n.norm(x, width), width, 32))
        x = n.op("Add", x, n.linear(y, 32, width))
    parts = [n.slice(x, [i, j], [side, side], [1, 2], [2, 2], c=width) for j in (0, 1) for i in (0, 1)]
    x = n.norm(n.concat(*parts, axis=-1), 4 * width)
    x = n.op("MatMul", x, n.random(4 * width, 2 * width, scale=0.2), c=2 * width)
    x = n.op("ReduceMean", n.norm(x, 2 * width), n.const([1, 2]), keepdims=0)
    return n.model(n.dense(x, 10))


def _rolled(n: Net, x: ir.Value, by: int, width: int) -> ir.Value:
    for axis in (1, 2):
        head = n.slice(x, [by], [2**31], [axis], c=width)
        tail = n.slice(x, [-(2**31)], [by], [axis], c=width)
        x = n.op("Concat", head, tail, axis=axis, c=width)
    return x


def mixer() -> ir.Model:
    """Linear layers over positions, which keep their width, and over channels."""
    n = Net()
    x = n.turn(n.shape(n.conv(n.input("n", 3, 16, 16), 24, 4, 4), 0, 24, -1), 0, 2, 1)
    for _ in range(2):
        y = n.turn(n.norm(x, 24), 0, 2, 1)
        y = n.linear(n.op("Gelu", n.linear(y, 16, 20)), 20, 16)
        x = n.op("Add", x, n.turn(y, 0, 2, 1), c=24)
        y = n.linear(n.op("Gelu", n.linear(n.norm(x, 24), 24, 32)), 32, 24)
        x = n.op("Add", x, y, c=24)
    return n.model(n.dense(n.op("ReduceMean", x, n.const([1]), keepdims=0, c=24), 10))


def convnext() -> ir.Model:
    n = Net()
    x = n.conv(n.input("n", 3, 16, 16), 16, 4, 4)
    for _ in range(2):
        y = n.turn(n.conv(x, 16, 7, 1, 16), 0, 2, 3, 1)
        y = n.linear(n.op("Gelu", n.linear(n.norm(y, 16), 16, 48)), 48, 16)
        y = n.turn(n.op("Mul", y, n.random(16, scale=0.3)), 0, 3, 1, 2)
        x = n.op("Add", x, y, c=16)
    x = n.op("Flatten", n.op("GlobalAveragePool", x))
    return n.model(n.dense(n.norm(x, 16), 10))


def crnn() -> ir.Model:
    """Convolutions read by a recurrent cell, which keeps its own width."""
    n = Net()
    x = n.pool(n.cbr(n.input("n", 1, 16, 24), 8))
    x = n.cbr(n.pool(x), 12)
    x = n.op("MaxPool", x, kernel_shape=[4, 1], strides=[4, 1])
    x = n.turn(n.op("Squeeze", x, n.const([2]), c=12), 2, 0, 1)
    weights = n.random(2, 40, 12, scale=0.3), n.random(2, 40, 10, scale=0.3), n.random(2, 80, scale=0.2)
    y = n.ops("LSTM", x, *weights, count=1, hidden_size=10, direction="bidirectional")[0]
    y = n.shape(n.turn(y, 0, 2, 1, 3), 0, 0, 20, c=20)
    y = n.op("Relu", n.linear(y, 20, 16))
    return n.model(n.op("LogSoftmax", n.linear(y, 16, 11), axis=-1))


def gru_keywords() -> ir.Model:
    n = Net()
    x = n.turn(n.relu(n.conv(n.input("n", 10, 20), 16, 5, nd=1)), 2, 0, 1)
    y = n.ops(
        "GRU", x, n.random(1, 36, 16, scale=0.3), n.random(1, 36, 12, scale=0.3), count=2, hidden_size=12
    )[1]
    y = n.op("Squeeze", y, n.const([0]), c=12)
    return n.model(n.dense(n.relu(n.dense(y, 20)), 4))


def temporal() -> ir.Model:
    """Dilated convolutions along time that look back only."""
    n = Net()
    x = n.conv(n.input("n", 6, 32), 8, 1, nd=1)
    for d in (1, 2):
        y = n.op("Pad", x, n.const([0, 0, 2 * d, 0, 0, 0]))
        y = n.relu(n.op("Conv", y, n.random(8, 8, 3, scale=0.2), n.random(8), dilations=[d]))
        x = n.op("Add", x, y)
    last = n.op("Gather", x, n.const(np.int64(-1)), axis=2, c=8)
    return n.model(n.dense(last, 5))


def autoencoder() -> ir.Model:
    n = Net()
    x = n.input("n", 64)
    for width in (32, 8, 32):
        x = n.relu(n.bn(n.dense(x, width)))
    return n.model(n.dense(x, 64))


def point_net() -> ir.Model:
    """A layer for every point, the largest of all points."""
    n = Net()
    x = n.input("n", 20, 3)
    x = n.relu(n.linear(n.relu(n.linear(x, 3, 16)), 16, 24))
    x = n.op("ReduceMax", x, n.const([1]), keepdims=0, c=24)
    return n.model(n.dense(n.relu(n.dense(x, 16)), 4))


def metric() -> ir.Model:
    """Two pictures compared by vectors of length one; both go through the same weights."""
    n = Net()
    a, b = n.input("n", 20), n.input("n", 20, name="z")
    first, second = n.random(20, 16, scale=0.2), n.random(16, 12, scale=0.3)
    ends = []
    for x in (a, b):
        y = n.op("MatMul", n.relu(n.op("MatMul", x, first)), second)
        length = n.op("Clip", n.op("ReduceL2", y, n.const([1]), keepdims=1), n.const(np.float32(1e-9)))
        ends.append(n.op("Div", y, n.op("Expand", length, n.op("Shape", y))))
    return n.model(n.op("ReduceSum", n.op("Mul", *ends), n.const([1]), keepdims=0))


def non_local() -> ir.Model:
    """Attention of one head over pixels: what is summed over can shrink."""
    n = Net()
    x = n.cbr(n.input("n", 3, 8, 8), 12)
    q, k, v = (n.shape(n.conv(x, 6, 1), 0, 6, -1) for _ in range(3))
    weights = n.op("Softmax", n.op("MatMul", n.turn(q, 0, 2, 1), k), axis=-1)
    y = n.turn(n.op("MatMul", weights, n.turn(v, 0, 2, 1)), 0, 2, 1)
    y = n.op("Reshape", y, n.const([-1, 6, 8, 8]), c=6)
    return n.model(n.head(n.add(x, n.conv(y, 12, 1))))


def einsum_attention() -> ir.Model:
    """Heads by letters: made, compared, weighed and read by weights of three axes; a bias for every head."""
    n = Net()
    x = n.linear(n.input("n", 9, 12), 12, 20)
    heads = [n.op("Einsum", x, n.random(20, 4, 5, scale=0.3), equation="btd,dhk->bthk") for _ in range(3)]
    q, k, v = (n.op("Add", y, n.random(4, 5, scale=0.3)) for y in heads)
    scores = n.op("Einsum", q, k, equation="bqhd,bkhd->bhqk")
    scores = n.op("Softmax", n.op("Add", scores, n.random(4, 9, 9)), axis=-1)
    y = n.op("Einsum", scores, v, equation="bhqk,bkhd->bqhd")
    y = n.op("Einsum", y, n.random(4, 5, 5, scale=0.3), equation="bqhd,hdk->bqhk")
    y = n.op("Einsum", y, n.random(4, 5, 20, scale=0.3), equation="bqhk,hkd->bqd", c=20)
    x = n.op("Add", x, y)
    y = n.op("Einsum", x, n.random(7, 9, scale=0.3), equation="btd,st->bsd")
    z = n.op("Einsum", y, y, equation="bsd,btd->bst")
    y = n.op("Einsum", z, y, equation="bst,btd->bsd", c=20)
    return n.model(n.linear(y, 20, 3))


SEQUENTIAL = {
    f.__name__: f
    for f in (
        vit, vit_packed, bert, gpt, gpt_turned, swin, mixer, convnext, crnn, gru_keywords, temporal,
        autoencoder, point_net, metric, non_local, einsum_attention,
    )
}  # fmt: skip
