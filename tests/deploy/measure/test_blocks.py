"""Times by block: sums by hand over a hand-made profile, and a real model in ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from backends.ort import OnnxRuntime
from deploy.adapter.protocol import Arrays
from deploy.bundle.read import PLAN, Bundle
from deploy.measure.blocks import OUTSIDE, block_times
from deploy.spec.artifact import Artifact, Options
from deploy.spec.document import parse
from deploy.spec.plan import BlockPlan, Plan

ARTIFACT = Artifact(backend="fake", files=("model",), inputs=(), outputs=())


def graph(text: str) -> ir.Model:
    """Two underscores in a node's name stand for a slash, which the notation does not have."""
    model = ir.from_onnx_text(text)
    for node in model.graph:
        node.name = (node.name or "").replace("__", "/")
    return model


BLOCKS = (
    BlockPlan(id="conv", nodes=("conv", "relu"), precision="int8"),
    BlockPlan(id="soft", nodes=("soft",), precision="float"),
    BlockPlan(id="flat", nodes=("flat",), precision="float"),
)
GRAPH = graph("""<ir_version: 10, opset_import: ["" : 21]>
g (float[1,8] x, float s, uint8 z) => (float[1,8] y) {
    [x__q] xq = QuantizeLinear(x, s, z)
    [x__dq] xd = DequantizeLinear(xq, s, z)
    [conv] c = Abs(xd)
    [relu] r = Relu(c)
    [r__q] rq = QuantizeLinear(r, s, z)
    [r__dq] rd = DequantizeLinear(rq, s, z)
    [soft] b = Softmax(rd)
    [flat] y = Flatten(b)
}""")


@dataclass
class Profiled(OnnxRuntime):
    """A backend whose profiler says what it is told to."""

    times: dict[str, float] = field(default_factory=dict)

    def operation_times(self, artifact: Artifact, options: Options, feeds: Arrays) -> dict[str, float]:
        return self.times


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"relu": 2.0, "conv": 1.0, "soft": 0.5}, {"conv": 3.0, "soft": 0.5, "flat": 0.0}),
        ({"relu": 2.0, "x/q": 0.25}, {"conv": 2.25, "soft": 0.0, "flat": 0.0}),
        ({"r/q": 0.5, "r/dq": 0.25, "soft": 1.0}, {"conv": 0.75, "soft": 1.0, "flat": 0.0}),
        ({"": 0.125, "stranger": 0.125}, {"conv": 0.0, "soft": 0.0, "flat": 0.0, OUTSIDE: 0.25}),
        ({}, {}),
    ],
)
def test_times_are_summed_by_block(times: dict[str, float], expected: dict[str, float]):
    assert block_times(GRAPH, BLOCKS, Profiled(times=times), ARTIFACT, Options(), {}) == expected


def test_the_blocks_of_a_real_model(built: Bundle, images: dict[str, np.ndarray]):
    """The two convolutions of the network do nearly all of its work."""
    folder: Path = built.folder
    artifact = built.manifest.artifact.model_copy(update={"folder": folder / "artifact"})
    blocks = parse(Plan, (folder / PLAN).read_text(), origin=PLAN).blocks
    feeds = {name: array[:1] for name, array in images.items()}
    times = block_times(ir.load(artifact.main), blocks, OnnxRuntime(), artifact, Options(), feeds)
    assert {block.id for block in blocks} <= set(times)
    assert all(ms >= 0 for ms in times.values())
    busy = {block.id for block in blocks if times[block.id] > 0}
    assert len(busy) >= 3, "two convolutions and the last product at least"
    assert times.get(OUTSIDE, 0.0) < sum(times.values())
