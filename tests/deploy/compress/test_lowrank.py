"""Factors: the best of their rank, equal at full rank, and kept only where they are smaller."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.compress.ground import Ground
from deploy.compress.lowrank import check, factorize
from deploy.compress.lowrank import run as lowrank_run
from deploy.compress.tucker import by_outputs, lost_power, tucker
from deploy.errors import DataError, UsageError
from deploy.graph.cost import macs
from deploy.graph.edit import constant, replace_weight, weight_bytes
from deploy.graph.pattern import products
from deploy.spec.compression import LowRank
from deploy.spec.finetune import Finetune


def gram_of(inputs: int, taps: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((inputs * taps, inputs * taps)) @ draw.standard_normal((inputs * taps, 400))
    return x @ x.T / 400


@pytest.mark.parametrize("data", [False, True])
def test_a_matrix_is_truncated_as_eckart_and_young_have_it(data) -> None:
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((12, 20, 1))
    gram = gram_of(20, 1) if data else None
    powers = np.linalg.svd(weight[:, :, 0] @ (np.linalg.cholesky(gram) if data else np.eye(20)))[1] ** 2
    for lost in (0.3, 0.1, 0.01):
        found = by_outputs(weight, gram, lost)
        rank = found.ranks[0]
        assert lost_power(found.weight(), weight, gram) == pytest.approx(
            powers[rank:].sum() / powers.sum(), rel=0.01, abs=1e-9
        )
        assert powers[rank:].sum() <= lost * powers.sum() < powers[rank - 1 :].sum()


@pytest.mark.parametrize("data", [False, True])
def test_full_ranks_give_the_weight_back(data) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 5, 9))
    gram = gram_of(5, 9) if data else None
    for found in (by_outputs(weight, gram, 0.0), tucker(weight, gram, 0.0)):
        assert found.weight() == pytest.approx(weight, abs=1e-9)


def test_ranks_that_are_there_are_found() -> None:
    draw = np.random.default_rng(1)
    core, up, down = (draw.standard_normal(s) for s in ((3, 4, 9), (16, 3), (4, 12)))
    weight = np.einsum("or,rst,si->oit", up, core, down)
    found = tucker(weight, None, 1e-9)
    assert found.ranks == (3, 4)
    assert found.weight() == pytest.approx(weight, abs=1e-8)
    assert tucker(weight, None, 1e-9, multiple=4).ranks == (4, 4)


def test_alternating_beats_the_singular_vectors_alone() -> None:
    weight = np.random.default_rng(2).standard_normal((10, 10, 9))
    found = tucker(weight, None, 0.5)
    out, given = found.ranks
    up = np.linalg.svd(weight.reshape(10, -1))[0][:, :out]
    down = np.linalg.svd(weight.transpose(1, 0, 2).reshape(10, -1))[0][:, :given]
    plain = np.einsum("oit,or,pr,is,js->pjt", weight, up, up, down, down)
    assert lost_power(found.weight(), weight, None) < lost_power(plain, weight, None)


CONV = """g (float[n,16,8,8] x) => (float[n,24,N,M] y) {
    [c] y = Conv <strides=[2,2], pads=[1,1,0,0], dilations=[2,1]> (x, w, b) }"""
FORMS = {
    "conv": (CONV, {"w": (24, 16, 3, 3), "b": (24,)}),
    "conv1x1": ("g (float[n,16,6,6] x) => (float[n,24,N,M] y) { [c] y = Conv<strides=[2,2]>(x, w) }",
                {"w": (24, 16, 1, 1)}),
    "signal": ("g (float[n,16,9] x) => (float[n,24,N] y) { [c] y = Conv<pads=[1,1]>(x, w) }",
               {"w": (24, 16, 3)}),
    "gemm": ("g (float[n,16] x) => (float[n,24] y) { [c] y = Gemm<alpha=0.5,beta=2.0>(x, w, b) }",
             {"w": (16, 24), "b": (24,)}),
    "gemm_turned": ("g (float[n,16] x) => (float[n,24] y) { [c] y = Gemm<transB=1>(x, w, b) }",
                    {"w": (24, 16), "b": (24,)}),
    "matmul": ("g (float[n,5,16] x) => (float[n,5,24] y) { [c] y = MatMul(x, w) }", {"w": (16, 24)}),
}  # fmt: skip


def of_low_rank(model):
    """Its weight replaced by one with few directions, and a little noise."""
    (product,) = products(model)
    array = constant(product.node.inputs[1])
    rows = array if product.node.op_type == "Conv" or product.axis == 1 else array.T
    draw = np.random.default_rng(5)
    up, down = draw.standard_normal((rows.shape[0], 4)), draw.standard_normal((4, rows.shape[1]))
    low = np.einsum("or,ri->oi", up, down).reshape(*rows.shape[:2], *[1] * (rows.ndim - 2))
    low = low * draw.standard_normal(rows.shape[2:]) + 1e-3 * draw.standard_normal(rows.shape)
    replace_weight(model, product.node, 1, low if rows is array else low.T)
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampled", [False, True])
def test_every_form_of_product_is_replaced_by_smaller_ones(form, sampled, build, run, data) -> None:
    text, shapes = FORMS[form]
    model = of_low_rank(build(text, shapes))
    found = factorize(model, data(model) if sampled else None, LowRank(lost=1e-4, samples=64))
    (step,) = found.steps
    assert step.kept
    assert len(found.graph.graph) == (3 if form in ("conv", "signal") else 2)
    assert [node.name for node in found.graph.graph][-1] == "c"
    assert macs(found.graph) < macs(model)
    assert weight_bytes(found.graph) < weight_bytes(model)
    told = float(step.what.split("% of the MACs")[0].split()[-1]) / 100
    assert told == pytest.approx(macs(found.graph) / macs(model), abs=0.006)
    feeds = next(data(model, 8, seed=9).batches(8)).feeds
    want = run(model, feeds)
    assert ((run(found.graph, feeds) - want) ** 2).mean() < 1e-3 * (want**2).mean()


def test_data_allow_lower_ranks_than_weights_do(residual, run, data) -> None:
    """For the same error of the result."""
    feeds = next(data(residual, 32, seed=9).batches(32)).feeds
    want = run(residual, feeds)
    sampled = factorize(residual, data(residual), LowRank(lost=0.02, samples=64)).graph
    error = ((run(sampled, feeds) - want) ** 2).mean()
    for lost in (0.1, 0.03, 0.01, 0.003):
        blind = factorize(residual, None, LowRank(lost=lost)).graph
        assert macs(blind) > macs(sampled) or ((run(blind, feeds) - want) ** 2).mean() > error


def test_weights_of_full_rank_stay_whole(residual, run) -> None:
    found = factorize(residual, None, LowRank(lost=1e-6))
    assert not found.changed
    assert all("left whole" in step.what for step in found.steps)
    assert len(found.graph.graph) == len(residual.graph)


def test_the_tolerance_is_kept(residual, data) -> None:
    found = factorize(residual, data(residual), LowRank(lost=0.1, samples=64, tolerance=1e-9))
    assert any("raises the error" in step.what for step in found.steps)
    assert all(step.after <= step.before + 1e-9 for step in found.steps if step.kept)


def test_what_makes_no_sense_is_refused(residual, data) -> None:
    for given in ({"lost": 1.0}, {"lost": -0.1}, {"align": 0}):
        with pytest.raises(UsageError):
            LowRank(**given)
    with pytest.raises(DataError):
        factorize(residual, data(residual, 4), LowRank())


def test_the_step_rounds_ranks_to_the_target_and_trains_what_is_left(build, data, tmp_path) -> None:
    text, shapes = FORMS["matmul"]
    model = of_low_rank(build(text, shapes))
    trained = []

    def tune(graph, step, prepare=None):
        trained.append(step)
        return graph.clone()

    step = LowRank(lost=1e-4, samples=64, finetune=Finetune(epochs=3))
    ground = Ground(samples=data(model), given=model, workdir=tmp_path, align=8, tune=tune)
    check(step, model, ground)
    found = lowrank_run(step, model, ground)
    assert "rank 8," in found.rows[0].what
    assert trained == [step.finetune]
    share = macs(found.model) / macs(model)
    assert f"1 of 1 products split, {share:.0%} of the MACs" in found.told


def test_a_step_without_anything_to_split_is_refused(build, data, tmp_path) -> None:
    model = build("g (float[n,3] x) => (float[n,3] y) { y = Relu(x) }", {})
    with pytest.raises(UsageError, match="no product"):
        check(LowRank(), model, Ground(samples=None, given=model, workdir=tmp_path))
