"""2:4 zeros block by block: the graph that has them, and what keeps a block dense."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
from deploy.data.dataset import open_dataset
from deploy.errors import UsageError
from deploy.execute.reference import open_graph
from deploy.graph.pattern import product_zeros
from deploy.graph.summary import tensor_specs
from deploy.quantize.assign import Assignment
from deploy.quantize.refine import Refinement
from deploy.quantize.sparse import NO_SPARSE_WEIGHTS, sparse_weights, why_dense, with_sparse
from deploy.spec.profile import Figure, Sparsity

TEXT = """g (float[N,4,8,8] x) => (float[N,6,8,8] y) {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [r1] b = Relu(a)
    [dw] c = Conv<pads=[1,1,1,1], group=8>(b, wd)
    [c2] d = Conv(c, w2)
    [add] e = Add(d, b)
    [c3] y = Conv(e, w3)
}"""
WEIGHTS = {"w1": (8, 4, 3, 3), "b1": (8,), "wd": (8, 1, 3, 3), "w2": (8, 8, 1, 1), "w3": (6, 8, 1, 1)}


@pytest.fixture
def subject(graph, quantize, as_subject, symmetric):
    twice = Figure(value=2.0, source="made up", date=symmetric.date)
    runtime = symmetric.model_copy(update={"sparsity": Sparsity(pattern="2:4", axis=1, gain=twice)})
    model = graph(TEXT, WEIGHTS)
    return as_subject(model, runtime, quantize(model, runtime))


@pytest.fixture
def samples(subject):
    images = np.random.default_rng(5).standard_normal((64, 4, 8, 8)).astype(np.float32)
    return open_dataset({"x": images}, tensor_specs(subject.graph.graph.inputs))


def found(subject, samples):
    return sparse_weights(subject, samples, seed=0, threads=1)


def outputs(model, samples) -> np.ndarray:
    with open_graph(model) as session:
        return next(iter(session.run(next(samples.batches(64)).feeds).values()))


def test_single_blocks_get_their_zeros_and_harm_what_was_said(subject, samples) -> None:
    sparse = found(subject, samples)
    owner = {name: block.id for block in subject.blocks for name in block.nodes}
    assert set(sparse.weights) == {owner[name] for name in ("c1", "c2", "c3")}, "one input is no four"
    assert {name for own in sparse.weights.values() for name in own} == {"c1", "c2", "c3"}
    thin = with_sparse(subject, sparse, [owner["c3"]])
    assert {name for name, zeros in product_zeros(thin.graph).items() if zeros} == {"c3"}
    assert not any(product_zeros(subject.graph).values()), "the one that was given stays"
    assert thin.refinement.sparse == {owner["c3"]} and thin.graph_sha256 != subject.graph_sha256
    exact, now = (outputs(one.graph, samples) for one in (subject, thin))
    assert sparse.harm[owner["c3"]] == pytest.approx(
        np.square(now - exact).sum() / np.square(exact).sum(), rel=0.25
    ), "judged on a quarter of the samples"
    chains = [{node.name for node in chain.nodes} for chain in thin.chains]
    assert chains == [{node.name for node in chain.nodes} for chain in subject.chains]
    assert all(node.graph is thin.graph.graph for chain in thin.chains for node in chain.nodes)


def test_what_is_excluded_stays_dense(subject, samples) -> None:
    kept = found(replace(subject, excluded=frozenset({"c2"})), samples)
    assert not any("c2" in own for own in kept.weights.values()) and len(kept.weights) == 2


@pytest.mark.parametrize(
    ("refinement", "gain", "why"),
    [
        (Refinement(rounded=Assignment({}, {})), 2.0, "were fitted to the dense ones"),
        (Refinement(), 1.0, "no faster there"),
        (Refinement(), "unknown", "is unknown"),
    ],
)
def test_why_nothing_becomes_sparse_is_said(subject, samples, refinement, gain, why) -> None:
    runtime = subject.runtime
    if gain != "unknown":
        gain = Figure(value=gain, source="made up", date=runtime.date)
    zeros = Sparsity(pattern="2:4", axis=1, gain=gain)
    other = replace(subject, refinement=refinement, runtime=runtime.model_copy(update={"sparsity": zeros}))
    assert why in why_dense(other) and found(other, samples) == NO_SPARSE_WEIGHTS
    assert why_dense(subject) == ""
    assert why_dense(replace(subject, runtime=runtime.model_copy(update={"sparsity": None}))) == ""


def test_a_lock_of_another_network_is_refused(subject, samples) -> None:
    assert with_sparse(subject, NO_SPARSE_WEIGHTS, ()) is subject
    with pytest.raises(UsageError, match="in block 'c9'"):
        with_sparse(subject, found(subject, samples), ["c9"])
