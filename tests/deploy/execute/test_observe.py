"""Streams of inner values: ONNX Runtime against torch, gradients against finite differences, memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.data.dataset import open_dataset
from deploy.errors import ModelError
from deploy.execute.module import GraphModule
from deploy.execute.observe import observe, observe_gradients
from deploy.graph.summary import tensor_specs

NET = """<ir_version: 8, opset_import: ["" : 21]>
g (float[{n},3,6,6] x) => (float[{n},288] y) <float[1] w = {{0}}, float[1] b = {{0}}> {{
a = Conv<pads=[1,1,1,1]>(x, w, b)  r = Relu(a)  s = Transpose<perm=[1,0,2,3]>(r)
k = Size(r)  y = Flatten(r) }}"""


def network(n: str | int = "N", dtype: type = np.float32) -> ir.Model:
    text = NET.format(n=n)
    model = ir.from_onnx_text(text if dtype == np.float32 else text.replace("float[", "double["))
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 3, 3)), ("b", (8,))):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(rng.standard_normal(shape).astype(np.float32).astype(dtype), name=name)
        value.shape = ir.Shape(shape)
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    return model


def images(count: int = 70) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, 6, 6)).astype(np.float32)


def data(model: ir.Model, x: np.ndarray):
    return open_dataset({"x": x}, tensor_specs(model.graph.inputs))


def squares(outputs, batch):
    return outputs["y"].square().sum()


@pytest.mark.parametrize("n", ["N", 1, 16])
def test_both_ways_see_the_same(n):
    model, x = network(n), images()
    names = ["x", "a", "r", "y"]
    fast = list(observe(model, data(model, x), names, samples=70))
    slow = list(observe_gradients(GraphModule(model), data(model, x), names, squares, samples=70, size=32))
    assert [seen.first for seen in slow] == list(range(0, 70, n if isinstance(n, int) else 32))
    for name in names:
        once = np.concatenate([seen.values[name] for seen in fast])
        again = np.concatenate([seen.values[name][0].numpy() for seen in slow])
        assert once.shape == again.shape
        np.testing.assert_allclose(once, again, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([seen.values["x"] for seen in fast]), x)


@pytest.mark.parametrize("n", ["N", 16])
def test_gradients_are_those_of_the_loss(n):
    """In float64, so that finite differences are good to seven digits; a filled batch counts once."""
    model, x = network(n), images(20)
    module = GraphModule(model)
    seen = list(observe_gradients(module, data(model, x), ["x", "r"], squares, samples=20, size=8))
    of_x = np.concatenate([part.values["x"][1].numpy() for part in seen])
    of_r = np.concatenate([part.values["r"][1].numpy() for part in seen])
    exact = GraphModule(network(n, np.float64))

    def loss(at):
        fed = torch.zeros(-(-len(at) // 16) * 16, 3, 6, 6, dtype=torch.float64)
        fed[: len(at)] = torch.from_numpy(at)
        return exact({"x": fed})["y"][: len(at)].square().sum().item()

    for place in ((0, 0, 0, 0), (7, 2, 3, 4), (19, 1, 5, 5)):
        step = np.zeros(x.shape)
        step[place] = 1e-6
        slope = (loss(x.astype(float) + step) - loss(x.astype(float) - step)) / 2e-6
        assert of_x[place] == pytest.approx(slope, rel=1e-3, abs=1e-4)
    y = exact({"x": torch.from_numpy(np.concatenate([x, x[:12]])).double()})["y"][:20].detach().numpy()
    np.testing.assert_allclose(of_r, 2 * y.reshape(of_r.shape), atol=1e-4)
    assert all(weight.grad is None for weight in module.parameters())


def test_a_value_beside_the_loss_has_zeros_and_integers_are_refused():
    model = network()
    module = GraphModule(model)
    (seen,) = observe_gradients(module, data(model, images(4)), ["s"], squares, samples=4)
    value, gradient = seen.values["s"]
    assert value.shape == gradient.shape == (8, 4, 6, 6)
    assert not gradient.any()
    with pytest.raises(ModelError, match="value 'k' has no gradient"):
        next(observe_gradients(module, data(model, images(4)), ["k"], squares, samples=4))


def test_unknown_names():
    model = network()
    with pytest.raises(KeyError):
        next(observe(model, data(model, images(4)), ["nothing"], samples=4))
    with pytest.raises(KeyError):
        next(observe_gradients(GraphModule(model), data(model, images(4)), ["nothing"], squares, samples=4))


def test_only_so_many_samples_and_literally_where_asked():
    model = network()
    seen = list(observe(model, data(model, images()), ["a"], samples=10, optimised=False))
    assert sum(len(part.values["a"]) for part in seen) == 10


def endless(model, count):
    """The same samples again and again, so that the data themselves take no room."""

    class Endless:
        one = data(model, images(64))

        def __len__(self):
            return count

        def batches(self, size, limit=None, *, feeds=True):
            left = min(count, limit or count)
            while left > 0:
                yield from self.one.batches(size, limit=min(left, 64))
                left -= 64

    return Endless()


def test_memory_is_flat_in_onnx_runtime():
    model = network()

    def peak(count):
        tracemalloc.start()
        for _ in observe(model, endless(model, count), ["x", "a", "y"], samples=count):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(64)
    assert peak(2048) < 1.2 * peak(128)


CHILD = """
import importlib.util, resource, sys
spec = importlib.util.spec_from_file_location("t", sys.argv[1])
t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
model = t.network()
module = t.GraphModule(model)
def run(count):
    stream = t.observe_gradients(module, t.endless(model, count), ["x", "a"], t.squares, samples=count)
    for _ in stream:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
first = run(256)
print(first, run(8192))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no rusage")
def test_memory_is_flat_in_torch():
    """8,192 samples make 26 MB of values and gradients; the process may grow by much less."""
    out = subprocess.run(
        [sys.executable, "-c", CHILD, __file__], check=True, capture_output=True, text=True, timeout=120
    )
    first, last = map(int, out.stdout.split())
    assert last - first < 10_000 * (1 if sys.platform != "darwin" else 1024)
