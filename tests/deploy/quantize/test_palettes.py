"""Weights that share values, from clustering into the plan and out of the artifact again."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.compress.cluster import cluster
from deploy.compress.codec import decode, encode
from deploy.frontend import onnx_file
from deploy.graph.edit import constant
from deploy.graph.palette import PaletteForms, palette_of, shared_palette
from deploy.graph.qdq import data_digest
from deploy.quantize.candidate import build_candidate
from deploy.quantize.palettes import palettes_of
from deploy.spec.compression import Cluster
from deploy.spec.plan import Plan, differences

NET = """g (float[N,16,6,6] x) => (float[N,24] y) {
    [c] a = Conv<pads=[1,1,1,1]>(x, w1, b1)  [r] b = Relu(a)
    [p] c = GlobalAveragePool(b)  [f] d = Flatten(c)  [m] y = Gemm(d, w2)
}"""
SHAPES = {"w1": (48, 16, 3, 3), "b1": (48,), "w2": (48, 24)}


@pytest.mark.parametrize(("group", "axes"), [(None, (None, None)), (16, (0, 1)), (8, (0, 1))])
def test_the_plan_says_what_lies_in_the_artifact(
    group, axes, graph, quantize, symmetric, as_subject, tmp_path
) -> None:
    model = cluster(graph(NET, SHAPES), Cluster(centres=16, group=group)).graph
    subject = as_subject(model, symmetric, quantize(model, symmetric))
    floats = build_candidate(subject, {b.id for b in subject.blocks}, tmp_path / "float")
    palettes = floats.plan.palettes
    assert [(p.values, p.bits, p.axis, p.size) for p in palettes.values()] == [
        (16, 4, axis, (group or 0) if axis is not None else 0) for axis in axes
    ]
    written = onnx_file.read(floats.artifact.main).model.graph.initializers
    for name, plan in palettes.items():
        array = constant(written[name])
        assert data_digest(array) == plan.digest
        stored = palette_of(array, plan.axis, plan.size)
        assert decode(encode({name: stored}))[name].values().tobytes() == array.tobytes()
        assert stored.stored_bytes < array.nbytes / 5
    integers = build_candidate(subject, (), tmp_path / "int8")
    assert not integers.plan.palettes


def test_dense_weights_and_values_that_differ_per_channel_have_none(graph) -> None:
    model = graph(NET, SHAPES)
    assert palettes_of(model) == {}
    few = np.random.default_rng(0).integers(0, 8, (64, 32)).astype(np.float32)
    scaled = few * np.linspace(1, 2, 64, dtype=np.float32)[:, None]
    assert shared_palette(few, 0).palette.axis is None
    own = shared_palette(scaled, 0).palette
    assert own.values().tobytes() == scaled.tobytes()
    assert own.codebook.shape[1] <= 256


def test_a_palette_that_the_plan_does_not_have_is_a_difference(graph) -> None:
    palettes = palettes_of(cluster(graph(NET, SHAPES), Cluster(centres=16)).graph)
    plan = Plan(graph_sha256="", target="t", runtime="r", palettes=palettes)
    other = palettes["w1"].model_copy(update={"digest": "0" * 64})
    bare = plan.model_copy(update={"palettes": {}})
    assert differences(plan, plan) == differences(plan, bare) == []
    assert "w1: other values" in differences(plan, plan.model_copy(update={"palettes": {"w1": other}}))[0]
    assert "w2: a palette" in differences(bare, plan.model_copy(update={"palettes": palettes}))[1]


@pytest.mark.parametrize("seed", range(20))
def test_no_palette_is_passed_over(seed: int) -> None:
    """Whole palettes of every size are few bytes where they are, whatever the first channels look like."""
    generator = np.random.default_rng(seed)
    channels = int(generator.integers(2, 40))
    values = generator.normal(size=int(generator.choice([2, 5, 17, 300]))).astype(np.float32)
    array = values[generator.integers(0, len(values), (channels, 24))]
    array *= generator.choice([0.5, 1.0, 3.0], (channels, 1)).astype(np.float32)
    forms = PaletteForms()
    every = [palette_of(array), *(palette_of(array, 0, size) for size in forms.sizes(channels))]
    least = min(
        (len(p.codebook) * 4 * 2**p.bits + -(-array.size * p.bits // 8) for p in every if p is not None),
        default=array.nbytes,
    )
    found = shared_palette(array, 0, forms)
    if least >= array.nbytes:
        assert found is None
    else:
        assert found.bytes == least
        np.testing.assert_array_equal(found.palette.values(), array)
