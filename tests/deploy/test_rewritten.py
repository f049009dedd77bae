"""A model with a GRU for two targets: one runtime compiles the layer written out, the others the layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("ai_edge_litert")
import deploy
from deploy.bundle.read import Bundle
from deploy.bundle.verify import verify_bundle
from deploy.errors import UsageError
from deploy.execute.reference import Session
from deploy.progress import Silent
from deploy.spec.plan import Plan

STEPS, INPUTS, HIDDEN, CLASSES = 6, 8, 8, 3
RNG = np.random.default_rng(3)

Build = Callable[..., Bundle]


class Told(Silent):
    """Keeps the outcomes of stages, and whether they were cached."""

    def __init__(self) -> None:
        self.outcomes: dict[str, tuple[str, bool]] = {}

    def finish(self, stage: str, seconds: float, cached: bool, outcome: str) -> None:
        self.outcomes[stage] = outcome, cached


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.5, shape).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames, a GRU whose last state is classified."""
    arrays = {
        "w": floats(1, 3 * HIDDEN, INPUTS), "r": floats(1, 3 * HIDDEN, HIDDEN),
        "b": floats(1, 6 * HIDDEN), "head": floats(HIDDEN, CLASSES), "bias": floats(CLASSES),
        "axis": np.zeros(1, np.int64),
    }  # fmt: skip
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[n,{STEPS},{INPUTS}] x) => (float[n,{CLASSES}] logits) {{
        [turn] frames = Transpose<perm = [1, 0, 2]>(x)
        [gru] y, h = GRU<hidden_size = {HIDDEN}>(frames, w, r, b)
        [last] state = Squeeze(h, axis)
        [classify] logits = Gemm(state, head, bias) }}""",
        initializers=[ir.tensor(a, name=n) for n, a in arrays.items()],
    )
    path = tmp_path_factory.mktemp("gru") / "gru.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make(source: Path, cache: Path, tmp_path: Path) -> Build:
    data = {"x": np.random.default_rng(0).normal(size=(48, STEPS, INPUTS)).astype(np.float32)}

    def run(**settings: object) -> Bundle:
        given = {
            "source": source, "target": "android", "precision": "int8", "data": data, "measure": False,
            "cache": cache, "out": tmp_path / "dist",
        }  # fmt: skip
        return deploy.build(**{**given, **settings})  # type: ignore[arg-type]

    return run


def plan_of(bundle: Bundle) -> Plan:
    return Plan.model_validate_json((bundle.folder / "plan.json").read_text())


def graph_of(bundle: Bundle) -> list[str]:
    return [node.op_type for node in onnx.load(bundle.folder / "graph.onnx").graph.node]


def test_each_runtime_compiles_its_own_graph(make: Build) -> None:
    phone, server = make(target="android"), make(target="x86-avx2", runtime="ort")
    assert "GRU" in graph_of(server) and "GRU" not in graph_of(phone)
    plans = plan_of(phone), plan_of(server)
    assert plans[0].graph_sha256 != plans[1].graph_sha256
    blocks = {block.id: block for block in plans[0].blocks}
    assert list(blocks) == ["turn", "gru/inputs", "gru/steps", "classify"]
    assert {blocks[name].precision for name in ("gru/inputs", "gru/steps")} == {"int8"}
    integer = plans[0].tensors
    assert {integer[name].axis for name in ("gru/w/gates", "gru/r/gates", "gru/r/hidden")} == {1}
    assert "gru" in [block.id for block in plans[1].blocks]
    for bundle in (phone, server):
        assert verify_bundle(bundle.folder).passed


def test_what_was_rewritten_is_found_in_the_cache(make: Build) -> None:
    make()
    second = Told()
    make(target="pixel8", progress=second)
    said, cached = second.outcomes["legalize"]
    assert said.startswith("tflite: 4 nodes became ")
    assert cached
    other = Told()
    make(target="x86-avx2", runtime="ort", progress=other)
    assert "legalize" not in other.outcomes


def test_to_exclude_the_layer_is_to_exclude_its_steps(make: Build) -> None:
    plan = plan_of(make(exclude=["gru"]))
    precision = {block.id: (block.precision, block.reason) for block in plan.blocks}
    assert precision["gru/inputs"] == precision["gru/steps"] == ("float", "excluded by the user")
    assert precision["classify"][0] == "int8"
    one = plan_of(make(exclude=["gru/step2/hidden/product"]))
    assert {block.id: block.precision for block in one.blocks}["gru/steps"] == "int8"
    with pytest.raises(UsageError, match="no node is called 'gri'"):
        make(exclude=["gri"])


def test_a_lock_is_followed(make: Build, tmp_path: Path) -> None:
    first = make(exclude=["gru/inputs/gates"])
    again = make(out=tmp_path / "again", lock=first.folder / "deploy.lock", exclude=["gru/inputs/gates"])
    assert plan_of(first) == plan_of(again)
    lock = json.loads((first.folder / "deploy.lock").read_text())
    assert lock["runtime"] == "tflite"
    lock["float_blocks"] = ["gru/steps"]
    (tmp_path / "deploy.lock").write_text(json.dumps(lock))
    held = plan_of(make(out=tmp_path / "held", lock=tmp_path / "deploy.lock"))
    assert {block.id: block.precision for block in held.blocks}["gru/steps"] == "float"


def test_the_float_form(make: Build) -> None:
    bundle = make(precision="float")
    assert verify_bundle(bundle.folder).passed
    assert {block.precision for block in plan_of(bundle).blocks} == {"float"}


def test_weights_in_a_file_of_their_own(make: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.frontend.onnx_file.EXTERNAL_BEYOND", 0)
    monkeypatch.setattr("deploy.stages.legalize.EMBEDDED", 0)
    bundle = make(cache=tmp_path / "own")
    assert (bundle.folder / "graph.onnx.data").exists()
    assert verify_bundle(bundle.folder).passed
    with Session(bundle.folder / "graph.onnx") as graph:
        assert [spec.name for spec in graph.inputs] == ["x"]
