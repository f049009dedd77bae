"""Graphs as text with random weights, rules of three kinds of runtime, and the way from one to the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from backends.ort import OnnxRuntime
from deploy.data.dataset import Dataset, open_dataset
from deploy.frontend.onnx_file import to_bytes
from deploy.graph.blocks import Block, partition
from deploy.graph.qdq import insert
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.quantize.assign import Assignment, assign
from deploy.quantize.calibrate import calibrate
from deploy.quantize.candidate import Subject
from deploy.quantize.place import Chain, Placement, find_chains, observed_values, place
from deploy.quantize.ranges import Histogram
from deploy.spec.artifact import Options
from deploy.spec.profile import FixedOutput, QuantRules, Runtime

_DAY = date(2026, 11, 21)
_MOVERS = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split")


def _runtime(name: str, fuses: tuple[str, ...], quant: QuantRules) -> Runtime:
    return Runtime(name=name, onnx_opset=21, fuses=fuses, quant=quant, source="test", date=_DAY)


UNSIGNED = _runtime(
    "unsigned",
    ("Conv+Relu", "Conv+Clip", "Gemm+Relu", "MatMul+Relu", "Add+Relu", "Mul+Relu"),
    QuantRules(
        activation="uint8",
        weight_bits=7,  # exact on every processor: no pair of products saturates 16 bits
        compute=("Conv", "MatMul", "Gemm", "Add", "Mul", "GlobalAveragePool", "Sigmoid", "LeakyRelu"),
        float_output=("MatMul", "Gemm"),
        forward=(*_MOVERS, "Gather", "Expand", "Tile", "Resize"),
        unify=("Concat",),
        source="test",
        date=_DAY,
    ),
)
"""As ONNX Runtime on x86 wants it."""

SYMMETRIC = _runtime(
    "symmetric",
    ("Conv+Relu", "Conv+Clip", "Conv+Add", "Conv+Add+Relu", "ConvTranspose+Relu", "Gemm+Relu", "MatMul+Relu"),
    QuantRules(
        activation="int8",
        symmetric_activation=True,
        bias="float",
        scale="float16",
        compute=("Conv", "ConvTranspose", "MatMul", "Gemm", "AveragePool", "GlobalAveragePool"),
        float_output=("Conv", "ConvTranspose", "MatMul", "Gemm"),
        forward=_MOVERS,
        unify=("Concat",),
        source="test",
        date=_DAY,
    ),
)
"""As TensorRT wants it."""

AFFINE = _runtime(
    "affine",
    ("Conv+Relu", "Conv+Clip", "Gemm+Relu", "Add+Relu"),
    QuantRules(
        activation="int8",
        weight_bits=7,
        compute=(
            "Conv",
            "ConvTranspose",
            "MatMul",
            "Gemm",
            "Add",
            "Mul",
            "Sigmoid",
            "Softmax",
            "Tanh",
            "AveragePool",
        ),
        forward=(*_MOVERS, "Pad"),
        unify=("Concat", "Max"),
        fixed_output={
            "Sigmoid": FixedOutput(scale=1 / 256, zero_point=-128),
            "Softmax": FixedOutput(scale=1 / 256, zero_point=-128),
            "Tanh": FixedOutput(scale=1 / 128, zero_point=0),
        },
        source="test",
        date=_DAY,
    ),
)
"""As LiteRT wants it."""


def _graph(text: str, weights: Mapping[str, tuple[int, ...] | np.ndarray] | None = None) -> ir.Model:
    """``g (inputs) => (outputs) { nodes }``; weights given by shape are random, of unit gain."""
    rng = np.random.default_rng(3)
    arrays = {}
    for name, given in (weights or {}).items():
        if isinstance(given, tuple):
            fan_in = max(1, int(np.prod(given[1:])) if len(given) > 2 else given[0] if given else 1)
            given = (rng.standard_normal(given) / np.sqrt(fan_in)).astype(np.float32)
        arrays[name] = given
    head = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'
    model = ir.from_onnx_text(
        f"{head} {text}", initializers=[ir.tensor(a, name=n) for n, a in arrays.items()]
    )
    for i, node in enumerate(ir.traversal.RecursiveGraphIterator(model.graph)):
        node.name = node.name or f"{node.op_type}_{i}"
    return infer(model)


def _feeds(model: ir.Model, samples: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal floats, small integers; free dimensions but the first are 6."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None and value.name is not None
        shape = [
            samples if axis == 0 else d if isinstance(d, int) else 6 for axis, d in enumerate(value.shape)
        ]
        kind = value.dtype.numpy()
        feeds[value.name] = (
            rng.standard_normal(shape).astype(kind)
            if np.issubdtype(kind, np.floating)
            else rng.integers(0, 2, shape).astype(kind)
        )
    return feeds


def _session(model: ir.Model | bytes, optimised: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # Else ONNX Runtime 1.31 makes an invalid graph of int8 pairs before a Transpose, at operator set 21.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    # Else it makes integers of float weights and biases, and saturates them.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else to_bytes(model)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _sqnr(signal: np.ndarray, noisy: np.ndarray) -> float:
    noise = np.sum((signal.astype(np.float64) - noisy) ** 2)
    return np.inf if noise == 0 else 10 * np.log10(max(np.sum(signal.astype(np.float64) ** 2), 1e-30) / noise)


@dataclass(frozen=True)
class Quantized:
    """Every stage on the way to INT8."""

    model: ir.Model
    dataset: Dataset
    blocks: tuple[Block, ...]
    chains: list[Chain]
    histograms: dict[str, Histogram]
    placement: Placement
    assignment: Assignment
    qdq: ir.Model


def _quantize(
    model: ir.Model,
    runtime: Runtime = UNSIGNED,
    *,
    float_blocks: Collection[str] = (),
    excluded: Collection[str] = (),
    feeds: Mapping[str, np.ndarray] | None = None,
    observer: str = "minmax",
) -> Quantized:
    given = _feeds(model) if feeds is None else dict(feeds)
    dataset = open_dataset(given, tensor_specs(model.graph.inputs))
    blocks = partition(model)
    chains = find_chains(model, blocks, runtime)
    histograms = calibrate(model, dataset, observed_values(model, chains, runtime), samples=64)
    precision = {b.id: "float" if b.id in float_blocks else "int8" for b in blocks}
    placement = place(model, blocks, precision, chains, runtime, excluded)
    assert runtime.quant is not None
    assignment = assign(model, placement, histograms, runtime.quant, observer)
    qdq = insert(model, assignment.tensors, assignment.codes)
    return Quantized(model, dataset, blocks, chains, histograms, placement, assignment, qdq)


@pytest.fixture
def graph():
    return _graph


@pytest.fixture
def random_feeds():
    return _feeds


@pytest.fixture
def session():
    return _session


@pytest.fixture
def sqnr():
    return _sqnr


@pytest.fixture
def quantize():
    return _quantize


@pytest.fixture(scope="session")
def unsigned() -> Runtime:
    return UNSIGNED


@pytest.fixture(scope="session")
def symmetric() -> Runtime:
    return SYMMETRIC


@pytest.fixture(scope="session")
def affine() -> Runtime:
    return AFFINE


@pytest.fixture
def as_subject():
    """The subject of a quantized graph for a runtime, with the histograms that were found of it."""

    def make(model: ir.Model, runtime: Runtime, result: Quantized) -> Subject:
        return Subject(
            graph=model,
            graph_sha256="0" * 64,
            target="here",
            runtime=runtime,
            backend=OnnxRuntime(),
            options=Options(),
            blocks=result.blocks,
            chains=result.chains,
            histograms=result.histograms,
            observer="minmax",
            excluded=frozenset(),
        )

    return make
