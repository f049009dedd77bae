"""Small networks for the handwritten digits, and their samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.data.dataset import Dataset, open_dataset
from deploy.frontend import onnx_file
from deploy.graph.blocks import Block, partition
from deploy.graph.edit import constant
from deploy.graph.qdq import data_digest, insert, quantize_array
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.quantize.assign import assign
from deploy.quantize.calibrate import calibrate
from deploy.quantize.place import find_chains, observed_values, place
from deploy.spec.plan import TensorPlan
from deploy.spec.profile import QuantRules, Runtime

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


@dataclass(frozen=True)
class Planned:
    """A float graph and how it is quantized: all blocks, weights of so many bits."""

    model: ir.Model
    blocks: tuple[Block, ...]
    tensors: dict[str, TensorPlan]
    codes: dict[str, np.ndarray]
    largest: int

    def graph(self) -> ir.Model:
        return insert(self.model, self.tensors, self.codes)


RULES = QuantRules(
    activation="uint8",
    compute=("Conv", "Gemm", "MatMul", "Add", "GlobalAveragePool"),
    float_output=("Gemm", "MatMul"),
    forward=("MaxPool", "Flatten", "Reshape"),
    source="an example",
    date=date(2026, 11, 21),
)
FUSES = ("Conv+Relu", "Gemm+Relu", "Add+Relu")


def planned(model: ir.Model, dataset: Dataset, bits: int = 8, rules: QuantRules = RULES) -> Planned:
    """The graph quantized by ``rules``, its weights then narrowed to ``bits``."""
    model = infer(model)
    runtime = Runtime(
        name="ort", onnx_opset=21, fuses=FUSES, quant=rules, source=rules.source, date=rules.date
    )
    blocks = partition(model)
    chains = find_chains(model, blocks, runtime)
    histograms = calibrate(model, dataset, observed_values(model, chains, runtime), samples=64)
    placement = place(model, blocks, {b.id: "int8" for b in blocks}, chains, runtime)
    found = assign(model, placement, histograms, rules, "minmax")
    tensors, codes, largest = dict(found.tensors), dict(found.codes), 2 ** (bits - 1) - 1
    for name, plan in found.tensors.items():
        array = constant(model.graph.initializers[name]) if name in codes else None
        if array is None:
            continue
        if plan.bias_of is None:
            scale = np.asarray(plan.scale, np.float32) * np.float32(127 / largest)
        else:
            given, own = (np.asarray(tensors[n].scale, np.float32) for n in plan.bias_of)
            scale = given * own
        plan = plan.model_copy(update={"scale": tuple(map(float, scale))})
        limits = {} if plan.bias_of is not None else {"low": -largest, "high": largest}
        codes[name] = quantize_array(array, plan, **limits)
        tensors[name] = plan.model_copy(update={"digest": data_digest(codes[name])})
    return Planned(model, blocks, tensors, codes, largest)


@pytest.fixture
def plan() -> Callable[..., Planned]:
    return planned


RESIDUAL = """<ir_version: 10, opset_import: ["" : 21]> g (float[n, 4, 8, 8] x) => (float[n, 5] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
    b = Relu (a)
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8> (b, w2, b2)
    d = Relu (c)
    e = Conv <kernel_shape = [1, 1]> (d, w3, b3)
    f = Add (e, b)
    g = Relu (f)
    h = GlobalAveragePool (g)
    i = Flatten (h)
    y = Gemm <transB = 1> (i, w4, b4)
}"""


@pytest.fixture(scope="session")
def residual() -> tuple[ir.Model, Dataset]:
    """A network with a residual unit, without batch norm, and 96 samples of noise in waves."""
    draw = np.random.default_rng(5)
    shapes = {"w1": (8, 4, 3, 3), "w2": (8, 1, 3, 3), "w3": (8, 8, 1, 1), "w4": (5, 8)}
    arrays = {
        name: (draw.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }
    arrays |= {f"b{i + 1}": draw.normal(0, 0.1, n).astype(np.float32) for i, n in enumerate((8, 8, 8, 5))}
    model = filled(RESIDUAL, arrays)
    waves = np.cumsum(draw.standard_normal((96, 4, 8, 8)), axis=3).astype(np.float32)
    return model, open_dataset({"x": waves}, tensor_specs(model.graph.inputs))
