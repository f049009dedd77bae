"""The whole way to INT8 over small graphs of every awkward kind: close to float, and as planned.

Each graph goes through inference, partition, chains, calibration, placement, numbers and Q/DQ, by the rules
of three kinds of runtime. ONNX Runtime then runs it, taken literally and optimised, against the float graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest

from deploy.frontend.onnx_file import to_bytes
from deploy.graph.qdq import read_tensors
from deploy.quantize.sensitivity import block_sqnr
from deploy.spec.plan import Plan, differences
from deploy.spec.profile import Runtime


@dataclass(frozen=True)
class Case:
    text: str
    weights: Mapping[str, tuple[int, ...] | np.ndarray] = field(default_factory=dict)


IMAGE, ROWS = "float[N,4,6,6]", "float[N,5,8]"
W = (4, 4, 3, 3)
PAD = "<pads=[1,1,1,1]>"


def case(text: str, **weights: tuple[int, ...] | np.ndarray) -> Case:
    return Case(text, weights)


def image(nodes: str, out: str = "float[N,C,H,W] y", **weights: tuple[int, ...] | np.ndarray) -> Case:
    return Case(f"g ({IMAGE} x) => ({out}) {{ {nodes} }}", weights)


def rows(nodes: str, out: str = "float[N,S,D] y", **weights: tuple[int, ...] | np.ndarray) -> Case:
    return Case(f"g ({ROWS} x) => ({out}) {{ {nodes} }}", weights)


def number(*values: float, kind: type = np.float32) -> np.ndarray:
    return np.asarray(values if len(values) > 1 else values[0], kind)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


LSTM = {"w": (1, 24, 16), "r": (1, 24, 6), "b": (1, 48)}

CASES: dict[str, Case] = {
    "residual": image(
        f"""a = Conv{PAD}(x, w1, b1)  r = Relu(a)  c = Conv{PAD}(r, w2, b2)  s = Add(c, x)  y = Relu(s)""",
        w1=W, b1=(4,), w2=W, b2=(4,),
    ),
    "shared bias": image(
        f"a = Conv{PAD}(x, w1, b)  c = Conv{PAD}(x, w2, b)  y = Add(a, c)", w1=W, w2=W, b=(4,)
    ),
    "shared weight, two biases": image(
        f"a = Conv{PAD}(x, w, b1)  r = Relu(a)  y = Conv{PAD}(r, w, b2)", w=W, b1=(4,), b2=(4,)
    ),
    "gemm with a row of C": case(
        "g (float[N,8] x) => (float[N,6] y) { y = Gemm(x, w, c) }", w=(8, 6), c=(1, 6)
    ),
    "gemm with one number for C": case(
        "g (float[N,8] x) => (float[N,6] y) { z = Gemm(x, w, c)  y = Relu(z) }", w=(8, 6), c=(1,)
    ),
    "gemm with a scalar C": case(
        "g (float[N,8] x) => (float[N,6] y) { z = Gemm(x, w, c)  y = Relu(z) }", w=(8, 6), c=number(0.3)
    ),
    "gemm with a full C": case(
        "g (float[4,8] x) => (float[4,6] y) { z = Gemm(x, w, c)  y = Relu(z) }", w=(8, 6), c=(4, 6)
    ),
    "gemm with a column of C": case(
        "g (float[4,8] x) => (float[4,4] y) { z = Gemm(x, w, c)  y = Relu(z) }", w=(8, 4), c=(4, 1)
    ),
    "gemm and matmul share a weight across axes": case(
        """g (float[N,8] x) => (float[N,8] y) {
        a = MatMul(x, w)  r = Relu(a)  y = Gemm<transB=1>(r, w, b) }""",
        w=(8, 5), b=(8,),
    ),
    "gemm transposed A": case(
        "g (float[4,8] x) => (float[8,6] y) { z = Gemm<transA=1>(x, w, c)  y = Relu(z) }", w=(4, 6), c=(6,)
    ),
    "gemm scaled": case(
        "g (float[N,8] x) => (float[N,6] y) { z = Gemm<alpha=0.5, beta=2.0>(x, w, c)  y = Relu(z) }",
        w=(8, 6), c=(6,),
    ),
    "constant on the left": case(
        "g (float[N,8,6] x) => (float[N,5,6] y) { a = MatMul(w, x)  y = Relu(a) }", w=(5, 8)
    ),
    "two activations multiplied": rows(
        "t = Transpose<perm=[0,2,1]>(x)  a = MatMul(x, t)  y = MatMul(a, x)"
    ),
    "vector on the right": rows(
        "a = MatMul(x, w1)  r = Relu(a)  y = MatMul(r, w2)",
        "float[N,S] y", w1=(8, 6), w2=(6,),
    ),
    "stack of weights": case(
        "g (float[N,3,5,8] x) => (float[N,3,5,6] y) { a = MatMul(x, w)  y = Relu(a) }", w=(3, 8, 6)
    ),
    "matmul and bias": rows(
        "a = MatMul(x, w)  c = Add(a, b)  r = Relu(c)  y = MatMul(r, w2)",
        w=(8, 8), b=(8,), w2=(8, 8),
    ),
    "concat of branches": image(
        f"""a = Conv{PAD}(x, w1, b1)  r = Relu(a)  c = Conv<kernel_shape=[1,1]>(x, w2)
        d = Concat<axis=1>(r, c, x)  y = Conv<kernel_shape=[1,1]>(d, w3)""",
        w1=W, b1=(4,), w2=(3, 4, 1, 1), w3=(5, 11, 1, 1),
    ),
    "concat with a constant": case(
        """g (float[4,4,6,6] x) => (float[4,5,6,6] y) {
        a = Conv<pads=[1,1,1,1]>(x, w)  d = Concat<axis=1>(a, k)  y = Conv<pads=[1,1,1,1]>(d, w2) }""",
        w=W, k=(4, 1, 6, 6), w2=(5, 5, 3, 3),
    ),
    "concat of a sigmoid and a wide range": image(
        f"""a = Conv{PAD}(x, w1)  s = Sigmoid(a)  c = Conv{PAD}(x, w2)  d = Concat<axis=1>(s, c)
        y = Conv<kernel_shape=[1,1]>(d, w3)""",
        w1=W, w2=np.random.default_rng(1).standard_normal(W).astype(np.float32), w3=(4, 8, 1, 1),
    ),
    "maximum of two": image(f"a = Conv{PAD}(x, w)  m = Max(a, x)  y = Conv{PAD}(m, w2)", w=W, w2=W),
    "split": image(
        f"a = Conv{PAD}(x, w)  p, q = Split<axis=1, num_outputs=2>(a)  c = Conv{PAD}(p, w2) "
        f"d = Conv{PAD}(q, w2)  y = Add(c, d)",
        w=W, w2=(4, 2, 3, 3),
    ),
    "split, one part read in float": image(
        f"a = Conv{PAD}(x, w)  p, q = Split<axis=1>(a, n)  c = Conv{PAD}(p, w2)  d = Exp(q)  y = Add(c, d)",
        w=W, n=ints(3, 1), w2=(4, 3, 3, 3),
    ),
    "branch bodies": image(
        f"""a = Conv{PAD}(x, w)  m = ReduceMax<keepdims=0>(a)  z = CastLike(zero, m)  c = Greater(m, z)
        i = If(c) <then_branch = t () => (float[N,4,6,6] tt) {{ tt = Mul(a, a) }},
        else_branch = e () => (float[N,4,6,6] ee) {{ ee = Add(a, x) }}>
        y = Conv{PAD}(i, w2)""",
        w=W, w2=W, zero=number(0.0),
    ),
    "weight read inside a branch": image(
        f"""a = Conv{PAD}(x, w)  m = ReduceMax<keepdims=0>(a)  c = Greater(m, zero)
        y = If(c) <then_branch = t () => (float[N,4,6,6] tt) {{ tt = Conv{PAD}(a, w) }},
        else_branch = e () => (float[N,4,6,6] ee) {{ ee = Relu(a) }}>""",
        w=W, zero=number(0.0),
    ),
    "loop": image(
        f"""a = Conv{PAD}(x, w)
        s = Loop(n, go, a) <body = l (int64 i, bool cin, float[N,4,6,6] v) => (bool cout, float[N,4,6,6] u)
        {{ cout = Identity(cin)  h = Mul(v, half)  u = Add(h, a) }}>
        y = Conv{PAD}(s, w2)""",
        w=W, w2=W, n=number(2, kind=np.int64), go=number(1, kind=np.bool_), half=number(0.5),
    ),
    "optional inputs left out": image(
        f"""a = Conv{PAD}(x, w, )  c = Clip(a, , hi)  u = Resize<mode="nearest">(c, , s)
        y = Conv{PAD}(u, w2)""",
        w=W, hi=number(1.5), s=number(1, 1, 2, 2), w2=W,
    ),
    "weight that is an output": case(
        f"g ({IMAGE} x) => (float[N,4,6,6] y, float[4,4,3,3] w) {{ y = Conv{PAD}(x, w) }}", w=W
    ),
    "clip in a chain": image(
        f"a = Conv{PAD}(x, w)  c = Clip(a, lo, hi)  y = Conv{PAD}(c, w2)",
        w=W, lo=number(0), hi=number(6), w2=W
    ),
    "clip to a computed limit": image(
        f"a = Conv{PAD}(x, w)  m = ReduceMax<keepdims=0>(x)  c = Clip(a, , m) "
        f"y = Conv{PAD}(c, w2)",
        w=W, w2=W,
    ),
    "clip above zero": image(
        f"a = Conv{PAD}(x, w)  c = Clip(a, lo, hi)  y = Conv{PAD}(c, w2)",
        w=W, lo=number(0.5), hi=number(2), w2=W
    ),
    "dynamic weight": case(
        "g (float[1,4,6,6] x, float[1,4,4,3,3] k) => (float[1,4,4,4] y) { w = Squeeze(k, ax) "
        "a = Conv(x, w)  y = Relu(a) }",
        ax=ints(0),
    ),
    "recurrent with outputs left out": rows(
        "p = MatMul(x, m)  t = Transpose<perm=[1,0,2]>(p)  h, , = LSTM<hidden_size=6>(t, w, r, b) "
        "q = Squeeze(h, ax)  z = Transpose<perm=[1,0,2]>(q)  y = MatMul(z, m2)",
        m=(8, 16), m2=(6, 4), ax=ints(1), **LSTM,
    ),
    "half source": case(
        "g (float16[N,4,6,6] x) => (float16[N,4,4,4] y) { a = Conv(x, w)  y = Relu(a) }",
        w=np.random.default_rng(0).standard_normal(W).astype(np.float16),
    ),
    "double source": case(
        "g (double[N,8] x) => (double[N,6] y) { a = MatMul(x, w)  r = Relu(a)  y = Add(r, r) }",
        w=np.random.default_rng(0).standard_normal((8, 6)),
    ),
    "double in the middle": rows(
        "a = MatMul(x, w)  d = Cast<to=11>(a)  e = Mul(d, d)  f = Cast<to=1>(e)  y = MatMul(f, w)", w=(8, 8)
    ),
    "token ids": case(
        """g (int64[N,5] i) => (float[N,5,8] y) {
        e = Gather(table, i)  a = MatMul(e, w)  s = Softmax(a)  y = MatMul(s, w) }""",
        table=(7, 8), w=(8, 8),
    ),
    "tied embedding": case(
        """g (int64[N,5] i) => (float[N,5,7] y) {
        e = Gather(table, i)  a = MatMul(e, w)  t = Transpose(table)  y = MatMul(a, t) }""",
        table=(7, 8), w=(8, 8),
    ),
    "unknown types": image(
        f"a = Conv{PAD}(x, w)  q = com.microsoft.QuickGelu<alpha=1.7>(a)  s = Add(q, a) "
        f"c = Conv{PAD}(s, w2)  y = Relu(c)", w=W, w2=W
    ),
    "outputs everywhere": case(
        f"g ({IMAGE} x) => (float[N,4,6,6] a, float[N,4,6,6] r, float[N,4,6,6] y) {{ a = Conv{PAD}(x, w) "
        f"r = Relu(a)  y = Conv{PAD}(r, w2) }}",
        w=W, w2=W,
    ),
    "input that is an output": case(
        f"g ({IMAGE} x) => (float[N,4,6,6] y, float[N,4,6,6] x) {{ y = Conv{PAD}(x, w) }}", w=W
    ),
    "value with itself": image(
        f"a = Conv{PAD}(x, w)  s = Add(a, a)  m = Mul(s, s)  y = Conv{PAD}(m, w2)",
        w=W, w2=W,
    ),
    "squeeze and excite": image(
        f"""a = Conv{PAD}(x, w)  g = GlobalAveragePool(a)  c = Conv<kernel_shape=[1,1]>(g, w1, b1)
        r = Relu(c)
        d = Conv<kernel_shape=[1,1]>(r, w2, b2)  s = Sigmoid(d)  m = Mul(a, s)  y = Add(m, x)""",
        w=W, w1=(2, 4, 1, 1), b1=(2,), w2=(4, 2, 1, 1), b2=(4,),
    ),
    "pooling with indices": image(
        f"a = Conv{PAD}(x, w)  p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) "
        f"c = Conv{PAD}(p, w2)  f = Cast<to=1>(i)  z = Mul(f, tiny)  y = Add(c, z)",
        w=W, w2=W, tiny=number(1e-4),
    ),
    "pooling": image(
        f"a = Conv{PAD}(x, w)  p = MaxPool<kernel_shape=[2,2]>(a) "
        f"q = AveragePool<kernel_shape=[2,2]>(p)  y = Conv{PAD}(q, w2)", w=W, w2=W
    ),
    "moved around": image(
        f"a = Conv{PAD}(x, w)  t = Transpose<perm=[0,2,3,1]>(a)  f = Flatten(t)  r = Reshape(f, s) "
        "y = MatMul(r, m)",
        "float[N,S,D] y", w=W, s=ints(0, 12, 12), m=(12, 5),
    ),
    "upsampled linearly": image(
        f"""a = Conv{PAD}(x, w)  u = Resize<mode="linear">(a, , s)  y = Conv{PAD}(u, w2)""",
        w=W, s=number(1, 1, 2, 2), w2=W,
    ),
    "upsampled cubically": image(
        f"""a = Conv{PAD}(x, w)  u = Resize<mode="cubic">(a, , s)  y = Conv{PAD}(u, w2)""",
        w=W, s=number(1, 1, 2, 2), w2=W,
    ),
    "depthwise and grouped": image(
        "a = Conv<group=4, pads=[1,1,1,1]>(x, w1, b)  r = Clip(a, lo, hi)  y = Conv<group=2>(r, w2)",
        w1=(4, 1, 3, 3), b=(4,), lo=number(0), hi=number(6), w2=(6, 2, 3, 3),
    ),
    "one dimension": rows(
        "a = Conv<pads=[1,1]>(x, w, b)  r = Relu(a)  y = Conv(r, w2)",
        w=(6, 5, 3), b=(6,), w2=(4, 6, 3),
    ),
    "three dimensions": case(
        "g (float[N,2,4,4,4] x) => (float[N,3,2,2,2] y) { a = Conv(x, w, b)  y = Relu(a) }",
        w=(3, 2, 3, 3, 3), b=(3,)
    ),
    "transposed convolutions": image(
        "a = ConvTranspose(x, w1, b1)  r = Relu(a)  y = ConvTranspose<group=2>(r, w2, b2)",
        w1=(4, 4, 2, 2), b1=(4,), w2=(4, 3, 2, 2), b2=(6,),
    ),
    "activations": image(
        f"a = Conv{PAD}(x, w)  l = LeakyRelu(a)  c = Conv{PAD}(l, w)  s = Sigmoid(c) "
        f"m = Mul(c, s)  h = HardSwish(m)  t = Tanh(h)  p = PRelu(t, k)  y = Conv{PAD}(p, w)",
        w=W, k=(4, 1, 1),
    ),
    "sizes computed": image(
        f"a = Conv{PAD}(x, w)  s = Shape(a)  b = Gather(s, first)  k = Concat<axis=0>(b, rest) "
        "r = Reshape(a, k)  y = MatMul(r, m)",
        "float[N,C] y", w=W, first=ints(0).reshape(1), rest=ints(-1).reshape(1), m=(144, 3),
    ),
    "names already taken": Case(
        f"""g ({IMAGE} a) => (float[N,4,6,6] y) {{
        [n1] b = Conv{PAD}(a, w)  ["a/q"] c = Relu(b)  ["a/dq"] d = Conv{PAD}(c, w2)
        e = Mul(d, scale)  ["y"] y = Add(e, a) }}""",
        {"w": W, "w2": W, "scale": (4, 1, 1)},
    ),
    "a movement at the end": image(f"a = Conv{PAD}(x, w)  r = Relu(a)  y = Flatten(r)", "float[N,C] y", w=W),
    "movement of movement": image(
        f"a = Conv{PAD}(x, w)  t = Transpose<perm=[0,2,3,1]>(a)  u = Transpose<perm=[0,3,1,2]>(t) "
        f"e = Exp(t)  v = Transpose<perm=[0,3,1,2]>(e)  s = Add(u, v)  y = Conv{PAD}(s, w2)",
        w=W, w2=W,
    ),
    "rows picked": rows(
        "a = MatMul(x, w)  g = Gather<axis=1>(a, i)  y = MatMul(g, w2)",
        w=(8, 8), i=ints(0, 2, 4), w2=(8, 4),
    ),
    "padded and cut": image(
        f"a = Conv{PAD}(x, w)  p = Pad(a, n)  c = Conv(p, w2)  s = Slice(c, st, en)  y = Conv(s, w3)",
        w=W, n=ints(0, 0, 1, 1, 0, 0, 1, 1), w2=W, st=ints(0, 0), en=ints(9999, 3), w3=(4, 3, 3, 3),
    ),
    "dead channels": image(
        f"a = Conv{PAD}(x, w, b)  r = Relu(a)  c = Conv{PAD}(r, w2, b2)  y = Add(c, x)",
        w=np.stack([np.zeros((4, 3, 3), np.float32), *np.ones((3, 4, 3, 3), np.float32)]),
        b=number(-1, 0, 0, 1), w2=W, b2=(4,),
    ),
    "dead values": image(
        f"a = Conv{PAD}(x, w, b)  r = Relu(a)  c = Conv{PAD}(r, w2, b2)  y = Add(c, x)",
        w=W, b=number(*[-1e3] * 4), w2=W, b2=(4,)
    ),
    "huge bias": image(f"a = Conv{PAD}(x, w, b)  y = Relu(a)", w=W, b=number(1e6, 0, 1, -1)),
    "attention": rows(
        """q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)  t = Transpose<perm=[0,2,1]>(k)
        s = MatMul(q, t)
        d = Div(s, root)  p = Softmax(d)  o = MatMul(p, v)  z = MatMul(o, wo)  y = Add(z, x)""",
        wq=(8, 8), wk=(8, 8), wv=(8, 8), wo=(8, 8), root=number(2.8),
    ),
    "bias added after": image(f"a = Conv{PAD}(x, w)  c = Add(a, b)  y = Relu(c)", w=W, b=(4, 1, 1)),
    "bias added before a shortcut": image(
        f"a = Conv{PAD}(x, w)  s = Add(x, a)  t = Relu(s)  c = Conv{PAD}(t, w2)  y = Add(t, c)",
        w=W, w2=W,
    ),
    "nothing changed": image(
        f"a = Conv{PAD}(x, w)  i = Identity(a)  d = Dropout(i)  y = Conv{PAD}(d, w2)",
        w=W, w2=W,
    ),
    "read as numbers and sizes": case(
        f"g ({IMAGE} x) => (float[N,4,6,6] y, int64[N,1,6,6] m, int64[4] s) {{ a = Conv{PAD}(x, w) "
        "m = ArgMax<axis=1>(x)  s = Shape(x)  y = Relu(a) }", w=W
    ),
    "one sample at a time": case(
        f"g (float[1,4,6,6] x) => (float[1,5] y) {{ a = Conv{PAD}(x, w, b)  r = Relu(a) "
        "p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm(f, m, c) }",
        w=W, b=(4,), m=(4, 5), c=(5,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rules", ["unsigned", "symmetric", "affine"])
@pytest.mark.parametrize("name", CASES)
def test_close_to_float_and_as_planned(name, rules, graph, random_feeds, session, sqnr, quantize, request):
    runtime: Runtime = request.getfixturevalue(rules)
    model = graph(CASES[name].text, CASES[name].weights)
    result = quantize(model, runtime)
    assert differences(_plan(result.assignment.tensors), _plan(read_tensors(result.qdq))) == []
    back = ir.from_proto(ir.to_proto(result.qdq))
    assert read_tensors(back) == read_tensors(result.qdq)
    assert [v.name for v in result.qdq.graph.inputs] == [v.name for v in model.graph.inputs]
    assert [v.name for v in result.qdq.graph.outputs] == [v.name for v in model.graph.outputs]

    first = model.graph.inputs[0].shape
    fixed = first[0] if isinstance(first[0], int) else 16
    feeds = {n: a[:fixed] for n, a in random_feeds(model).items()}
    want = session(to_bytes(model), optimised=False).run(None, feeds)
    for optimised in (False, True):
        got = session(to_bytes(result.qdq), optimised).run(None, feeds)
        for value, a, b in zip(model.graph.outputs, want, got, strict=True):
            if a.dtype.kind == "f":
                assert sqnr(a, b) > 20, f"{value.name}, optimised: {optimised}"
            else:
                np.testing.assert_array_equal(a, b)

    noise = block_sqnr(model, result.blocks, result.assignment, result.dataset, samples=16)
    kernels = {node.name for chain in result.placement.chains for node in chain.nodes}
    for block in result.blocks:
        if kernels.intersection(block.nodes):
            assert noise[block.id] > 20


def _plan(tensors) -> Plan:
    return Plan(graph_sha256="", target="", runtime="", tensors=tensors)
