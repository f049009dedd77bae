"""Blocks of 8 and of 16 bits side by side: what is written for them, and what the interpreters make of it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.data.dataset import open_dataset
from deploy.execute.reference import open_graph
from deploy.graph.blocks import partition
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.quantize.calibrate import calibrate
from deploy.quantize.candidate import Candidate, Subject, build_candidate
from deploy.quantize.place import find_chains, observed_values
from deploy.quantize.widen import able_to_widen, widened, with_makers

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.micro.bare import bare
from backends.tflite.micro.interpreter import MicroInterpreter, _said
from backends.tflite.micro.sdk import runtime as micro
from backends.tflite.write import read_file

NET = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,4,8,8] x) => (float[1,6] y) <int64[2] flat = {1, -1}> {
  [stem] a = Conv<pads=[1,1,1,1]>(x, w1, b1)  [stem_relu] ar = Relu(a)
  [deep] d = Conv<pads=[1,1,1,1], group=8>(ar, w2, b2)  [deep_relu] dr = Relu(d)
  [point] p = Conv(dr, w3, b3)
  [sum] s = Add(p, ar)  [sum_relu] sr = Relu(s)
  [pool] m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(sr)
  [left] l = Conv(m, w4)  [right] r = Conv(m, w5, b5)
  [join] j = Concat<axis=1>(l, r)
  [mean] g = GlobalAveragePool(j)
  [flatten] f = Reshape(g, flat)
  [head] y = Gemm<transB=1>(f, w6, b6)
}"""
WEIGHTS = {
    "w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,), "w3": (8, 8, 1, 1), "b3": (8,),
    "w4": (4, 8, 1, 1), "w5": (4, 8, 1, 1), "b5": (4,), "w6": (6, 8), "b6": (6,),
}  # fmt: skip
EVERY = ("stem", "deep", "point", "left", "right", "mean", "head")
SOME: dict[str, tuple[str, ...]] = {
    "none": (), "first": ("stem",), "last": ("head",), "inside": ("deep", "point"), "one side": ("left",),
    "two readers": ("left", "right"), "every second": ("stem", "point", "right", "head"), "all": EVERY,
}  # fmt: skip
SAMPLES = np.random.default_rng(1).normal(size=(24, 4, 8, 8)).astype(np.float32)


def subject(target: str) -> Subject:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 0.4, size).astype(np.float32) for name, size in WEIGHTS.items()}
    model = ir.from_onnx_text(NET, initializers=[ir.tensor(a, name=n) for n, a in arrays.items()])
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    infer(model)
    runtime, backend = load_profile(target).runtime_named("tflite"), TFLite()
    blocks = partition(model)
    chains = find_chains(model, blocks, runtime)
    dataset = open_dataset({"x": SAMPLES}, tensor_specs(model.graph.inputs))
    histograms = calibrate(model, dataset, observed_values(model, chains, runtime), samples=24)
    return Subject(
        graph=model, graph_sha256="0" * 64, target=target, runtime=runtime, backend=backend,
        options=backend.options(runtime, 1), blocks=blocks, chains=chains, histograms=histograms,
        observer="mse", excluded=frozenset(),
    )  # fmt: skip


@pytest.fixture(scope="module", params=["microcontroller", "android"])
def net(request: pytest.FixtureRequest) -> Subject:
    return subject(request.param)


def outputs(net: Subject, candidate: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """What the graph says, taken literally, and what the interpreter makes of the file."""
    rows = [{"x": SAMPLES[i : i + 1]} for i in range(len(SAMPLES))]
    with open_graph(candidate.qdq, optimised=False) as session:
        want = [session.run(feeds)["y"] for feeds in rows]
    with net.backend.open(candidate.artifact, net.options) as runner:
        got = [runner.run(feeds)["y"] for feeds in rows]
    return np.concatenate(want), np.concatenate(got)


def decibels(signal: np.ndarray, noisy: np.ndarray) -> float:
    return float(10 * np.log10(np.square(signal).sum() / np.square(signal - noisy).sum().clip(1e-12)))


def operators(candidate: Candidate) -> list[str]:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {code: name for name, code in vars(BuiltinOperator).items() if name.isupper()}
    model = read_file(candidate.artifact.main)
    return [names[model.operatorCodes[o.opcodeIndex].builtinCode] for o in model.subgraphs[0].operators]


@pytest.mark.parametrize("wide", SOME)
def test_the_interpreters_compute_what_the_graph_says(net: Subject, wide: str, tmp_path: Path) -> None:
    """That the file carries the plan is proved where it is built."""
    candidate = build_candidate(widened(net, SOME[wide]), (), tmp_path / "w")
    blocks = {b.id: b.precision for b in candidate.plan.blocks if b.id in EVERY}
    assert blocks == {block: "w8a16" if block in SOME[wide] else "int8" for block in EVERY}
    found = operators(candidate)
    turned = sum(bool(tensor.uses) for tensor in candidate.plan.tensors.values())
    assert found.count("QUANTIZE") == 1 + turned, (
        "the input, and each value that is read in another width, once"
    )
    assert found.count("DEQUANTIZE") == 1, "the output"
    want, got = outputs(net, candidate)
    assert decibels(want, got) > (75 if wide == "all" else 38)


@pytest.mark.parametrize("wide", ["none", "inside", "every second", "all"])
def test_the_arena_is_planned_as_the_interpreter_plans_it(wide: str, tmp_path: Path) -> None:
    engine = micro()
    if engine is None:
        pytest.skip("TensorFlow Lite Micro is not installed")
    candidate = build_candidate(widened(subject("microcontroller"), SOME[wide]), (), tmp_path / "w")
    opened = MicroInterpreter(engine, bare(candidate.artifact.main.read_bytes()), inner=False)
    found = re.search(r"head (\d+) bytes", _said(opened._engine.print_allocations)[1])
    memory = candidate.artifact.memory_bytes
    assert found is not None
    planning = wide == "none"  # the planner's own records are larger than what they plan
    assert int(found[1]) < memory["tensors"] if planning else int(found[1]) == memory["tensors"]


def test_16_bits_come_nearer_to_the_floats(net: Subject, tmp_path: Path) -> None:
    with open_graph(net.graph) as session:
        exact = np.concatenate([session.run({"x": SAMPLES[i : i + 1]})["y"] for i in range(len(SAMPLES))])

    def found(wide: Collection[str]) -> float:
        candidate = build_candidate(widened(net, wide), (), tmp_path / str(len(wide)))
        return decibels(exact, outputs(net, candidate)[1])

    assert found(()) + 1.5 < found(("stem", "deep", "point", "head")) + 1 < found(EVERY) + 1


def test_all_blocks_of_16_bits_are_the_form_that_can_be_asked_for(net: Subject) -> None:
    """The same parameters as those of a runtime that has 16 bits only."""
    runtime = net.runtime.model_copy(update={"quant": net.runtime.quant16, "quant16": None})
    chains = find_chains(net.graph, net.blocks, runtime)
    whole = replace(net, runtime=runtime, chains=chains)
    assert widened(net, EVERY).assignment(()).tensors == whole.assignment(()).tensors


def test_who_makes_what_a_block_reads_is_found_through_what_moves_it(net: Subject) -> None:
    assert able_to_widen(net) == list(EVERY)
    assert with_makers(net, ["point"]) == {"stem", "deep", "point"}
    assert with_makers(net, ["left"]) == {"point", "left"}, "before it is a pool"
    assert with_makers(net, ["mean"]) == {"left", "right", "mean"}, "before it a concatenation"


def test_float_blocks_may_stand_beside_them(net: Subject, tmp_path: Path) -> None:
    candidate = build_candidate(widened(net, ["left", "right", "mean"]), ["point"], tmp_path / "w")
    kinds = {b.id: b.precision for b in candidate.plan.blocks}
    assert (kinds["stem"], kinds["point"], kinds["mean"], kinds["head"]) == ("int8", "float", "w8a16", "int8")
    want, got = outputs(net, candidate)
    assert decibels(want, got) > 38
