"""2:4 zeros on their way into artifacts: through quantization, and read again out of what was written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from backends.openvino import OpenVino
from backends.ort import OnnxRuntime
from backends.tensorrt import TensorRT
from backends.tflite import TFLite
from deploy.graph.edit import constant
from deploy.graph.pattern import product_zeros
from deploy.quantize import correct, equalize, smooth
from deploy.quantize.candidate import build_candidate
from deploy.quantize.zeros import prove_zeros

PAD = "<pads=[1,1,1,1]>"
NET = f"""g (float[N,4,6,6] x) => (float[N,6] y) {{
    [c1] a = Conv{PAD}(x, w1, b1)  [r1] b = Relu(a)
    [c2] c = Conv{PAD}(b, w2, b2)  [r2] d = Relu(c)
    [pool] e = GlobalAveragePool(d)  [flat] f = Flatten(e)
    [fc] y = Gemm(f, w3)
}}"""
DRAW = np.random.default_rng(0)


def sparse(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Two of each four neighbours along ``axis`` are nothing."""
    array = np.moveaxis(DRAW.standard_normal(shape).astype(np.float32), axis, -1)
    fours = array.reshape(*array.shape[:-1], -1, 4)
    gone = np.argsort(DRAW.random(fours.shape), axis=-1)[..., :2]
    np.put_along_axis(fours, gone, 0, axis=-1)
    return np.ascontiguousarray(np.moveaxis(fours.reshape(array.shape), -1, axis))


@pytest.fixture
def subject(graph, quantize, symmetric, as_subject):
    weights = {"w1": (8, 4, 3, 3), "b1": (8,), "w2": sparse((8, 8, 3, 3), 1), "b2": (8,)}
    model = graph(NET, {**weights, "w3": sparse((8, 6), 0)})
    return as_subject(model, symmetric, quantize(model, symmetric))


BACKENDS = {"ort": OnnxRuntime, "tensorrt": TensorRT, "openvino": OpenVino, "tflite": TFLite}


@pytest.mark.parametrize("name", BACKENDS)
def test_zeros_are_proved_in_what_each_backend_writes(name, subject, tmp_path) -> None:
    subject = replace(subject, backend=BACKENDS[name]())
    candidate = build_candidate(subject, (), tmp_path)
    assert {b.id: b.sparsity for b in candidate.plan.blocks if b.id != "pool"} == {
        "c1": None, "c2": "2:4", "fc": "2:4",
    }  # fmt: skip
    proof = prove_zeros(candidate.plan.blocks, candidate.qdq, candidate.artifact, subject.backend)
    assert proof is not None
    assert (proof.products, proof.proved, proof.broken) == (2, 2, ())
    assert proof.by == ("weights" if name in ("ort", "tensorrt") else "digests")


def test_floats_are_proved_where_the_file_can_be_looked_into(subject, tmp_path) -> None:
    everything = {block.id for block in subject.blocks}
    found = {}
    for name in ("ort", "tflite"):
        own = replace(subject, backend=BACKENDS[name]())
        candidate = build_candidate(own, everything, tmp_path / name)
        found[name] = prove_zeros(candidate.plan.blocks, candidate.qdq, candidate.artifact, own.backend)
    assert found["ort"].proved == 2
    assert found["tflite"].proved == 0
    assert found["tflite"].broken == (
        "c2: unproved, its weights are floats", "fc: unproved, its weights are floats",
    )  # fmt: skip


@pytest.mark.parametrize("integers", [True, False])
def test_core_ml_stores_no_zeros_and_they_are_proved(integers, subject, tmp_path) -> None:
    """Large weights lie behind masks, small ones as they are."""
    pytest.importorskip("coremltools")
    from backends.coreml import CoreML

    options = {"minimum_deployment_target": "iOS18"}
    own = replace(subject, backend=CoreML(), runtime=subject.runtime.model_copy(update={"options": options}))
    chosen = () if integers else {block.id for block in own.blocks}
    candidate = build_candidate(own, chosen, tmp_path)
    proof = prove_zeros(candidate.plan.blocks, candidate.qdq, candidate.artifact, own.backend)
    assert (proof.products, proof.proved, proof.broken) == (2, 2, ())
    assert proof.by == ("digests" if integers else "weights")


def test_a_zero_that_was_lost_in_a_package_is_told(graph, symmetric, quantize, as_subject, tmp_path) -> None:
    pytest.importorskip("coremltools")
    from backends.coreml import CoreML

    weights = {"w1": (8, 4, 3, 3), "b1": (8,), "w2": sparse((16, 8, 3, 3), 1), "b2": (16,), "w3": (16, 6)}
    model = graph(NET, weights)
    own = replace(as_subject(model, symmetric, quantize(model, symmetric)), backend=CoreML())
    candidate = build_candidate(own, {block.id for block in own.blocks}, tmp_path)
    file = next(tmp_path.rglob("weight.bin"))
    content = bytearray(file.read_bytes())
    mask = np.packbits((weights["w2"] != 0).reshape(-1), bitorder="little").tobytes()
    place = content.index(mask)
    first = int(np.flatnonzero(weights["w2"].reshape(-1) == 0)[0])
    last = int(np.flatnonzero(weights["w2"])[-1])
    for bit in (first, last):  # as many numbers, one of them somewhere else
        content[place + bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    proof = prove_zeros(candidate.plan.blocks, candidate.qdq, candidate.artifact, own.backend)
    assert (proof.products, proof.proved, proof.by) == (1, 0, "weights")
    assert "of its fours hold more than two numbers" in proof.broken[0]


def test_a_zero_that_was_lost_on_the_way_is_told(subject, tmp_path) -> None:
    candidate = build_candidate(subject, (), tmp_path)
    path = candidate.artifact.main
    written = onnx.load(path)
    (stored,) = (t for t in written.graph.initializer if t.name.startswith("w3") and len(t.dims) == 2)
    codes = numpy_helper.to_array(stored).copy()
    codes[:4, 0] = 5
    stored.CopyFrom(numpy_helper.from_array(codes, stored.name))
    onnx.save(written, path)
    proof = prove_zeros(candidate.plan.blocks, candidate.qdq, candidate.artifact, subject.backend)
    assert (proof.products, proof.proved) == (2, 1)
    assert proof.broken == ("fc: 8.3% of its fours hold more than two numbers",)


def test_dense_networks_have_nothing_to_prove(graph, quantize, symmetric, as_subject, tmp_path) -> None:
    model = graph(NET, {"w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "b2": (8,), "w3": (8, 6)})
    subject = as_subject(model, symmetric, quantize(model, symmetric))
    candidate = build_candidate(subject, (), tmp_path)
    assert prove_zeros(candidate.plan.blocks, candidate.qdq, candidate.artifact, subject.backend) is None


def test_rungs_of_the_ladder_that_scale_and_shift_keep_zeros(graph, quantize, symmetric) -> None:
    spread = np.geomspace(0.03, 30, 8).astype(np.float32)
    w1, w2 = sparse((8, 8, 1, 1), 1), sparse((8, 8, 1, 1), 1)
    image = "float[N,8,6,6]"
    model = graph(
        f"""g ({image} x) => ({image} y) {{ [c1] a = Conv(x, w1, b1)  [r1] r = Relu(a)
        [dw] d = Conv<group=8, pads=[1,1,1,1]>(r, wd, bd)  [r2] s = Relu(d)  [c2] y = Conv(s, w2, b2) }}""",
        {
            "w1": w1 * spread[:, None, None, None], "b1": 0.1 * spread, "wd": (8, 1, 3, 3),
            "bd": 0.1 * spread, "w2": w2 / spread[None, :, None, None], "b2": (8,),
        },
    )  # fmt: skip
    whole = quantize(model, symmetric)
    how = {"observer": "minmax", "samples": 16}
    for rung in (equalize, smooth):
        changed = rung.apply(model, whole.placement, symmetric.quant, whole.dataset, **how).result
        zeros = product_zeros(changed)
        assert zeros == {"c1": True, "dw": False, "c2": True}
        if rung is equalize:
            assert any((constant(v) != constant(model.graph.initializers[n])).any()
                       for n, v in changed.graph.initializers.items() if n in ("w1", "w2"))  # fmt: skip
    corrected = correct.apply(model, whole.assignment, symmetric.quant, whole.dataset, samples=16).result
    for name in ("w1", "w2"):
        gone = constant(model.graph.initializers[name]) == 0
        assert (corrected.assignment.codes[name][gone] == 0).all()
