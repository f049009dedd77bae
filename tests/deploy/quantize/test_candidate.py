"""A choice of float blocks made into an artifact, and backends that write something else than the plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from backends.ort import OnnxRuntime
from deploy.errors import VerificationError
from deploy.graph.qdq import read_tensors
from deploy.quantize import assign
from deploy.quantize.candidate import Subject, build_candidate
from deploy.spec.artifact import Artifact, Options
from deploy.spec.plan import Plan, differences

IMAGE, PAD = "float[N,4,6,6]", "<pads=[1,1,1,1]>"
NET = f"""g ({IMAGE} x) => ({IMAGE} y) {{
[c1] a = Conv{PAD}(x, w1, b1)  [r1] r = Relu(a)  [e] e = Exp(r)  [c2] y = Conv{PAD}(e, w2) }}"""


@pytest.fixture
def subject(graph, quantize, unsigned, as_subject) -> Subject:
    model = graph(NET, {"w1": (4, 4, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3)})
    result = quantize(model)
    return as_subject(model, unsigned, result)


def test_the_artifact_carries_the_plan_and_the_plan_says_why(subject, tmp_path):
    candidate = build_candidate(
        subject, ["c1"], tmp_path / "new" / "folder", sqnr={"c1": 12.346, "c2": np.inf}
    )
    plan = candidate.plan
    assert differences(plan, subject.backend.read_plan(candidate.artifact)) == []
    assert set(plan.tensors) == {"e", "w2", "y"}
    assert (plan.graph_sha256, plan.target, plan.runtime) == ("0" * 64, "here", "unsigned")
    assert plan.quantized
    blocks = {b.id: b for b in plan.blocks}
    assert {b.id: b.precision for b in plan.blocks} == {"c1": "float", "e": "float", "c2": "int8"}
    assert [n for b in plan.blocks for n in b.nodes] == ["c1", "r1", "e", "c2"]
    assert blocks["c1"].reason == "kept float to hold the accuracy budget"
    assert "no integer kernel for Exp" in blocks["e"].reason
    assert blocks["c2"].reason == ""
    assert (blocks["c1"].sqnr_db, blocks["c2"].sqnr_db) == (12.35, None)


def test_reasons_given_are_kept(subject, tmp_path):
    plan = build_candidate(subject, ["c1"], tmp_path, reasons={"c1": "slower in INT8"}).plan
    assert next(b for b in plan.blocks if b.id == "c1").reason == "slower in INT8"


def test_all_float_is_the_graph_itself(subject, tmp_path):
    candidate = build_candidate(subject, {b.id for b in subject.blocks}, tmp_path)
    assert not candidate.plan.quantized
    assert candidate.qdq is subject.graph
    assert {b.precision for b in candidate.plan.blocks} == {"float"}


def test_around_half_a_float_block_is_fp16(subject, tmp_path):
    half = replace(subject, runtime=subject.runtime.model_copy(update={"around": "float16"}))
    plan = build_candidate(half, ["c1"], tmp_path).plan
    assert {b.id: b.precision for b in plan.blocks} == {"c1": "fp16", "e": "fp16", "c2": "int8"}


def test_blocks_that_may_be_int8(subject):
    assert subject.int8_blocks() == ["c1", "c2"]
    assert replace(subject, excluded=frozenset({"c1"})).int8_blocks() == ["c2"]
    assert replace(subject, excluded=frozenset({"r1"})).int8_blocks() == ["c2"], "excluded with its chain"


def test_an_excluded_node_is_float_and_the_plan_says_by_whom(subject, tmp_path):
    plan = build_candidate(replace(subject, excluded=frozenset({"r1"})), (), tmp_path).plan
    assert set(plan.tensors) == {"e", "w2", "y"}
    block = next(b for b in plan.blocks if b.id == "c1")
    assert (block.precision, block.reason) == ("float", "excluded by the user")


@pytest.mark.parametrize(("excluded", "stored"), [((), {"w1", "w2"}), (("r",), {"w2"})])
def test_weights_alone_stay_float_with_what_is_excluded(
    graph, quantize, unsigned, as_subject, tmp_path, excluded, stored
):
    text = (
        "g (float[N,32] x) => (float[N,32] y) { [m] a = MatMul(x, w1) [r] b = Relu(a) [n] y = MatMul(b, w2) }"
    )
    model = graph(text, {"w1": (32, 32), "w2": (32, 32)})
    subject = as_subject(model, unsigned, quantize(model))
    plan = build_candidate(replace(subject, form="w8", excluded=frozenset(excluded)), (), tmp_path).plan
    assert set(plan.tensors) == stored
    first = next(b for b in plan.blocks if "r" in b.nodes)
    wanted = ("float", "excluded by the user") if excluded else ("w8", "")
    assert (first.precision, first.reason) == wanted


def test_without_rules_nothing_is_quantized(subject, tmp_path):
    plain = replace(subject, runtime=subject.runtime.model_copy(update={"quant": None}), chains=[])
    assert not build_candidate(plain, (), tmp_path).plan.quantized


class Altering(OnnxRuntime):
    """Writes another graph than it was given."""

    def __init__(self, change) -> None:
        self.change = change

    def lower(self, graph, plan, runtime, workdir, progress):
        copy = graph.clone()
        self.change(copy)
        return super().lower(copy, plan, runtime, workdir, progress)


def constant(name: str, array: np.ndarray):
    def change(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(array.reshape(value.const_value.shape), name=name)

    return change


def without_the_pair_of_e(model: ir.Model) -> None:
    pair = next(n for n in model.graph if n.name == "e/dq")
    pair.outputs[0].replace_all_uses_with(next(n for n in model.graph if n.name == "e").outputs[0])


def one_more_pair(model: ir.Model) -> None:
    reader = next(n for n in model.graph if n.name == "e")
    scale, zero = (model.graph.initializers[n] for n in ("e/scale", "e/zero_point"))
    value = reader.inputs[0]
    new = [ir.node("QuantizeLinear", [value, scale, zero], name="more/q")]
    new.append(ir.node("DequantizeLinear", [new[0].outputs[0], scale, zero], name="more/dq"))
    for node in new:
        node.outputs[0].name = node.name
        model.graph.append(node)
    reader.replace_input_with(0, new[1].outputs[0])
    model.graph.sort()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (constant("e/scale", np.float32([0.5])), "e: scale 0.5"),
        (constant("e/zero_point", np.uint8([7])), r"e: zero point \(7,\)"),
        (constant("w2/int", np.zeros(144, np.int8)), "w2: integer data differ"),
        (without_the_pair_of_e, "e: in the plan but not in the artifact"),
        (one_more_pair, "in the artifact but not in the plan"),
    ],
)
def test_a_backend_that_alters_the_plan_is_caught(change, said, subject, tmp_path):
    altering = replace(subject, backend=Altering(change))
    with pytest.raises(VerificationError, match=said) as caught:
        build_candidate(altering, ["c1"], tmp_path)
    assert "report" in caught.value.hint


def test_a_long_list_of_differences_is_cut(subject, tmp_path):
    class Forgetful(OnnxRuntime):
        def read_plan(self, artifact: Artifact) -> Plan:
            return super().read_plan(artifact).model_copy(update={"tensors": {}})

    with pytest.raises(VerificationError, match="and 2 more"):
        build_candidate(replace(subject, backend=Forgetful()), (), tmp_path)


def test_the_graph_returned_is_the_one_written(subject, tmp_path):
    candidate = build_candidate(subject, (), tmp_path)
    assert read_tensors(candidate.qdq) == read_tensors(ir.load(candidate.artifact.main))


def test_what_touches_an_infinite_value_stays_float(graph, quantize, unsigned):
    """An attention mask of minus infinity: the product before it and the one behind stay what they may be."""
    model = graph(
        """g (float[N,5,8] x, float[N,5,5] mask) => (float[N,5,8] y) {
        [q] q = MatMul(x, w)  [t] t = Transpose<perm=[0,2,1]>(q)  [s] s = MatMul(q, t)  [m] m = Add(s, mask)
        [p] p = Softmax(m)  [o] y = MatMul(p, q) }""",
        {"w": (8, 8)},
    )
    result = quantize(model)
    histograms = dict(result.histograms)
    endless = type(histograms["m"])(low=-np.inf, high=1.0) if "m" in histograms else None
    subject = Subject(
        graph=model, graph_sha256="0" * 64, target="here", runtime=unsigned, backend=OnnxRuntime(),
        options=Options(), blocks=result.blocks, chains=result.chains,
        histograms=histograms | {"m": endless, "mask": endless} if endless else histograms,
        observer="minmax", excluded=frozenset(),
    )  # fmt: skip
    assert endless is not None
    assert subject.unbounded == {"m", "p"}
    tensors = subject.assignment(()).tensors
    assert not {"m", "mask"} & tensors.keys()
    assert {"q", "w"} <= tensors.keys()


def test_what_was_found_for_one_candidate_serves_the_next(subject, monkeypatch):
    """Each against the same graph that was asked nothing before."""
    searched: list[object] = []
    find = assign.range_by
    monkeypatch.setattr(assign, "range_by", lambda *a, **k: searched.append(a) or find(*a, **k))
    whole, part = subject.assignment(()), subject.assignment(["c1"])
    assert len(searched) == len(whole.tensors.keys() & subject.histograms.keys())
    for found, floats in ((whole, ()), (part, ["c1"])):
        assert found.tensors == replace(subject).assignment(floats).tensors
    symmetric = subject.runtime.quant.model_copy(update={"symmetric_activation": True})
    other = replace(subject, runtime=subject.runtime.model_copy(update={"quant": symmetric}))
    assert other.assignment(()).tensors["y"] != whole.tensors["y"]
