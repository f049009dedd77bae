"""What exporters write for a group normalization, as one node, against ONNX Runtime on what was given."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph import shapes
from deploy.graph.rules import apply_rules

RNG = np.random.default_rng(0)
CHANNELS, GROUPS = 6, 3
ONES = {"s": np.ones(GROUPS, np.float32), "b": np.zeros(GROUPS, np.float32)}
SPLIT = f"<int64[3] split = {{0, {GROUPS}, -1}}, int64[4] whole = {{0, {CHANNELS}, 4, 5}}>"
NORM = "h = Reshape(x, split) [norm] i = InstanceNormalization<epsilon = 0.01>(h, s, b)"


def channel(rank: int = 3) -> np.ndarray:
    return RNG.normal(size=(CHANNELS, *(1,) * (rank - 1))).astype(np.float32)


def joined(model: ir.Model, prove) -> ir.Model:
    return apply_rules(shapes.infer(model), ["join-group-norm"], prove).model


@pytest.mark.parametrize(
    ("behind", "arrays"),
    [
        ("y = Reshape(i, whole)", {}),
        ("j = Reshape(i, whole) k = Mul(j, w) y = Add(k, c)", {"w": channel(), "c": channel()}),
        ("j = Reshape(i, whole) k = Mul(w, j) y = Add(c, k)", {"w": channel()[None], "c": channel()}),
        ("j = Reshape(i, whole) y = Add(j, c)", {"c": channel()}),
    ],
)
def test_joined_with_what_scales_it(parse, prove, behind: str, arrays: dict[str, np.ndarray]) -> None:
    given = {"s": RNG.normal(size=GROUPS).astype(np.float32), "b": RNG.normal(size=GROUPS).astype(np.float32)}
    model = parse(f"g (float[n,6,4,5] x) => (float[n,6,4,5] y) {SPLIT} {{ {NORM} {behind} }}", given | arrays)
    result = joined(model, prove)
    assert [(node.op_type, node.name) for node in result.graph] == [("GroupNormalization", "norm")]
    assert prove(model, result) is None


@pytest.mark.parametrize(
    ("behind", "ends"),
    [
        ("y = Reshape(i, whole) z = Relu(i)", ", float[n,3,40] z"),  # the groups are read
        ("y = Reshape(i, turned)", ""),
    ],
)
def test_other_shapes_are_left(parse, prove, behind: str, ends: str) -> None:
    split = SPLIT.replace(">", ", int64[4] turned = {0, 6, 5, 4}>")
    shape = "float[n,6,5,4]" if "turned" in behind else "float[n,6,4,5]"
    model = parse(f"g (float[n,6,4,5] x) => ({shape} y{ends}) {split} {{ {NORM} {behind} }}", ONES)
    assert "InstanceNormalization" in [node.op_type for node in joined(model, prove).graph]


def test_a_scale_for_each_pixel_stays_behind(parse, prove) -> None:
    pixels = {"w": RNG.normal(size=(4, 5)).astype(np.float32)}
    model = parse(
        f"""g (float[n,6,4,5] x) => (float[n,6,4,5] y) {SPLIT}
        {{ {NORM} j = Reshape(i, whole) y = Mul(j, w) }}""",
        ONES | pixels,
    )
    result = joined(model, prove)
    assert [node.op_type for node in result.graph] == ["GroupNormalization", "Mul"]
    assert prove(model, result) is None
