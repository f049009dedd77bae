"""Thinner copies: every network of the zoo at half its width runs, and computes what its weights say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")
from convolutional import CONVOLUTIONAL
from sequential import SEQUENTIAL

from deploy.compress.ground import Ground
from deploy.compress.student import fresh, run
from deploy.errors import UsageError
from deploy.execute.compare import workable_feeds
from deploy.execute.reference import open_graph
from deploy.graph.cost import macs, parameters
from deploy.graph.edit import constant
from deploy.spec.compression import Shrink

NETWORKS = {**CONVOLUTIONAL, **SEQUENTIAL}
PLAIN = """<ir_version: 10, opset_import: ["" : 21]> g (float[n, 3, 8, 8] x) => (float[n, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    b = BatchNormalization (a, s, t, m, v)
    c = Conv <pads = [1, 1, 1, 1]> (b, w2)
    d = GlobalAveragePool (c)
    e = Flatten (d)
    y = Gemm <transB = 1> (e, w3, b3)
}"""


def ground(model: ir.Model, align: int = 1) -> Ground:
    return Ground(samples=None, given=model, workdir=Path("unused"), align=align)


def plain(width: int = 16) -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (width, 3, 3, 3), "b1": (width,), "s": (width,), "t": (width,), "m": (width,), "v": (width,),
        "w2": (8, width, 3, 3), "w3": (4, 8), "b3": (4,),
    }  # fmt: skip
    model = ir.from_onnx_text(PLAIN)
    for name, shape in shapes.items():
        tensor = ir.tensor(rng.random(shape).astype(np.float32), name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor
        )
        model.graph.register_initializer(value)
        for node in model.graph:
            for index, given in enumerate(node.inputs):
                if given is not None and given.name == name:
                    node.replace_input_with(index, value)
    for node, name in zip(model.graph, "abcdefg", strict=False):
        node.name = f"layer.{name}"
    return model


def sizes(model: ir.Model) -> dict[str, list[int]]:
    return {name: list(value.shape.numpy()) for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_at_half_its_width_runs_and_is_thinner(name: str) -> None:
    model = NETWORKS[name]()
    thin = run(Shrink(width=0.5, criterion="l1"), model, ground(model)).model
    assert parameters(thin) < parameters(model)
    before, after = macs(model), macs(thin)
    assert before is None or after is None or after <= before
    with open_graph(thin, optimised=False) as session:
        results = session.run(workable_feeds(session, 0))
    with open_graph(model, optimised=False) as session:
        wanted = session.run(workable_feeds(session, 0))
    assert {n: a.shape for n, a in results.items()} == {n: a.shape for n, a in wanted.items()}
    assert all(np.isfinite(array).all() for array in results.values())


def test_the_strongest_channels_stay() -> None:
    model = plain()
    norms = [np.linalg.norm([*_all(model, c)]) for c in range(16)]
    thin = run(Shrink(width=0.5, criterion="l2", widths={"layer.c": 1.0}), model, ground(model)).model
    kept = sorted(np.argsort(norms)[8:].tolist())
    assert np.array_equal(_array(thin, "w1"), _array(model, "w1")[kept])
    assert np.array_equal(_array(thin, "w2"), _array(model, "w2")[:, kept])


def _all(model: ir.Model, channel: int) -> np.ndarray:
    """Every number that goes with a channel of the first layer."""
    own = [_array(model, name)[channel].ravel() for name in ("w1", "b1", "s", "t", "m", "v")]
    return np.concatenate([*own, _array(model, "w2")[:, channel].ravel()])


def _array(model: ir.Model, name: str) -> np.ndarray:
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array


def test_widths_by_pattern_and_alignment() -> None:
    model = plain(64)
    step = Shrink(width=0.5, widths={"*.a": 0.3, "layer.*": 0.25}, protect=("layer.c",))
    assert sizes(run(step, model, ground(model)).model)["w1"][0] == 19
    assert sizes(run(step, model, ground(model, align=16)).model)["w1"][0] == 16
    assert sizes(run(step, model, ground(model)).model)["w2"][0] == 8, "protected"


def test_fresh_weights_are_he_normal_and_norms_identities() -> None:
    new = fresh(plain(64), seed=3)
    first = _array(new, "w1")
    assert abs(first.mean()) < 0.02 and first.std() == pytest.approx(np.sqrt(2 / 27), rel=0.1)
    assert _array(new, "w3").std() == pytest.approx(np.sqrt(2 / 8), rel=0.3)
    for name, value in {"s": 1, "t": 0, "m": 0, "v": 1, "b1": 0, "b3": 0}.items():
        assert (_array(new, name) == value).all()
    assert np.array_equal(_array(fresh(plain(64), seed=3), "w1"), first)
    assert not np.array_equal(_array(fresh(plain(64), seed=4), "w1"), first)


def test_names_that_do_not_exist_are_told_with_near_ones() -> None:
    model = plain()
    for step in (Shrink(width=0.5, widths={"layr.a": 0.2}), Shrink(width=0.5, protect=("layr.a",))):
        with pytest.raises(UsageError, match=r"'layr\.a' is the name of no node") as caught:
            run(step, model, ground(model))
        assert "layer.a" in caught.value.hint


def test_a_graph_in_which_nothing_can_go_says_why() -> None:
    model = plain()
    with pytest.raises(UsageError, match="no channels of this model can go") as caught:
        run(Shrink(width=0.5, protect=("*",)), model, ground(model))
    assert "protected" in caught.value.hint
