"""Small networks for the handwritten digits, and their samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.data.dataset import Dataset, open_dataset
from deploy.frontend import onnx_file
from deploy.graph.summary import tensor_specs

TINY = """<ir_version: 10, opset_import: ["" : 21]> g (float[n, 1, 16, 16] x) => (float[n, 10] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1)
    b = BatchNormalization (a, scale, shift, mean, variance)
    c = Relu (b)
    d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (c, w2, b2)
    e = Relu (d)
    f = Flatten (e)
    y = Gemm <transB = 1> (f, w3, b3)
}"""
SHAPES = {
    "w1": (8, 1, 3, 3), "scale": (8,), "shift": (8,), "mean": (8,), "variance": (8,),
    "w2": (8, 8, 3, 3), "b2": (8,), "w3": (10, 128), "b3": (10,),
}  # fmt: skip


def filled(text: str, arrays: dict[str, np.ndarray]) -> ir.Model:
    """The graph with these constants, every node named."""
    model = ir.from_onnx_text(text)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
        for value in node.inputs:
            if value is not None and value.name in arrays and value.name not in model.graph.initializers:
                tensor = ir.tensor(arrays[value.name], name=value.name)
                value.const_value, value.shape = tensor, ir.Shape(tensor.numpy().shape)
                value.type = ir.TensorType(tensor.dtype)
                model.graph.initializers[value.name] = value
    return model


def tiny_model(seed: int = 0) -> ir.Model:
    """Conv, batch norm, Relu, Conv, Relu, Gemm: from 1x16x16 to 10 scores."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for name, shape in SHAPES.items():
        spread = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
        arrays[name] = (draw.standard_normal(shape) * spread).astype(np.float32)
    arrays["scale"] += 1
    arrays["variance"] = np.full(8, 0.1, np.float32)
    return filled(TINY, arrays)


def arrays_of(model: ir.Model) -> dict[str, np.ndarray]:
    """The constants by name."""
    return {
        n: v.const_value.numpy() for n, v in model.graph.initializers.items() if v.const_value is not None
    }


def same(one: ir.Model, other: ir.Model) -> bool:
    """Whether all constants are equal bit for bit."""
    first, second = arrays_of(one), arrays_of(other)
    return first.keys() == second.keys() and all(
        first[n].dtype == second[n].dtype and first[n].tobytes() == second[n].tobytes() for n in first
    )


@pytest.fixture
def tiny() -> ir.Model:
    return tiny_model()


@pytest.fixture
def fill() -> Callable[[str, dict[str, np.ndarray]], ir.Model]:
    return filled


@pytest.fixture
def constants() -> Callable[[ir.Model], dict[str, np.ndarray]]:
    return arrays_of


@pytest.fixture
def equal() -> Callable[[ir.Model, ir.Model], bool]:
    return same


@pytest.fixture(scope="session")
def digits(example: Path) -> ir.Model:
    """The trained network of the example, 0.98 and more on its eval samples."""
    return onnx_file.read(example / "digits.onnx").model


@pytest.fixture(scope="session")
def train(example: Path, digits: ir.Model) -> Dataset:
    """256 labelled digits."""
    return open_dataset(example / "calib.npz", tensor_specs(digits.graph.inputs))


@pytest.fixture(scope="session")
def validation(example: Path, digits: ir.Model) -> Dataset:
    """The first 300 digits that training has not seen."""
    whole = open_dataset(example / "eval.npz", tensor_specs(digits.graph.inputs))
    return whole.select(np.arange(300))
