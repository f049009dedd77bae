"""The step on small networks: what is asked for is met, and what is left is what it should be."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import pytest
from convolutional import CONVOLUTIONAL
from net import Net
from sequential import SEQUENTIAL

from deploy.compress.ground import Ground
from deploy.compress.prune.amount import counted
from deploy.compress.prune.schedule import milestones
from deploy.compress.prune.step import check, removal, run, setting
from deploy.data.dataset import Dataset
from deploy.errors import UsageError
from deploy.execute.reference import open_graph
from deploy.graph import cost
from deploy.graph.edit import weight_bytes
from deploy.graph.groups import find_groups
from deploy.graph.masked import masked
from deploy.graph.shrink import shrink
from deploy.spec.compression import Criterion, Prune, Scope
from deploy.spec.finetune import Finetune
from deploy.train.units import batches

CRITERIA: Sequence[Criterion] = ("obs", "l1", "l2", "batch_norm", "taylor", "random")
SCOPES: Sequence[Scope] = ("measured", "global", "layer")
Make = Callable[..., Ground]


def _answers(model: ir.Model, seed: int = 5) -> np.ndarray:
    feeds = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else 4 for d in value.shape or ()]
        feeds[value.name or ""] = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    with open_graph(model, optimised=False) as session:
        return next(iter(session.run(feeds).values())).astype(np.float64)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_way_meets_the_goal_and_is_the_whole_with_channels_masked(
    network: ir.Model, ground: Make, criterion: Criterion, scope: Scope
) -> None:
    step = Prune(macs=0.4, criterion=criterion, scope=scope, compensate=False)
    groups, on = find_groups(network), ground(network)
    here = setting(step, network, groups, {}, on)
    whole = cost.macs(network) or 0
    feeds = batches(network, on.samples, 48, 16)
    gone = removal(step, here, 0.6 * whole, network, feeds, on, {})
    smaller = shrink(network, groups, gone)
    assert 0.5 * whole < (cost.macs(smaller) or 0) <= 0.6 * whole
    wanted = _answers(masked(network, groups, gone))
    assert _answers(smaller) == pytest.approx(wanted, abs=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["vit", "shufflenet_v2", "mobilenet_v3"])
def test_heads_shuffles_and_squeezes_keep_what_is_asked(name: str, ground: Make) -> None:
    model = {**CONVOLUTIONAL, **SEQUENTIAL}[name]()
    on = ground(model)
    step = Prune(parameters=0.3, criterion="l2", scope="global", compensate=False)
    smaller = run(step, model, on).model
    left = cost.parameters(smaller) / cost.parameters(model)
    assert 0.6 < left <= 0.7
    assert _answers(smaller).shape == _answers(model).shape


def _partly_dead() -> ir.Model:
    """Three layers of eight channels. Of the first, two are never made; of the second, three never read."""
    n = Net(3)
    x = n.relu(n.conv(n.input("n", 3, 8, 8), 8))
    model = n.model(n.head(n.relu(n.conv(n.relu(n.conv(x, 8)), 8))))
    convs = [node for node in model.graph if node.op_type == "Conv"]
    _numbers(convs[0], 1)[[1, 6]] = 0
    _numbers(convs[0], 2)[[1, 6]] = 0
    _numbers(convs[2], 1)[:, [0, 2, 7]] = 0
    return model


def _numbers(node: ir.Node, index: int) -> np.ndarray:
    value = node.inputs[index]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


@pytest.mark.parametrize(
    ("criterion", "scope"),
    [("l1", "global"), ("l2", "measured"), ("taylor", "global"), ("obs", "measured"), ("obs", "global")],
)
def test_dead_channels_go_first_and_cost_nothing(ground: Make, criterion: Criterion, scope: Scope) -> None:
    model = _partly_dead()
    groups = find_groups(model)
    left = counted(model, groups, "macs")(np.array([[6.0, 5.0, 8.0], [8.0, 8.0, 8.0]]))
    share = float(1 - left[0] / left[1])
    step = Prune(macs=share - 1e-6, criterion=criterion, scope=scope, compensate=False, per_round=0.9)
    smaller = run(step, model, ground(model)).model
    convs = [node for node in smaller.graph if node.op_type == "Conv"]
    assert [len(_numbers(node, 1)) for node in convs] == [6, 5, 8]
    assert _answers(smaller) == pytest.approx(_answers(model), abs=1e-5)


def test_twins_go_at_no_cost_where_others_make_up_for_them(ground: Make) -> None:
    """No norm tells a channel that another repeats; Optimal Brain Surgeon does, and its readers take over."""
    n = Net(4)
    model = n.model(n.head(n.relu(n.conv(n.relu(n.conv(n.input("n", 3, 8, 8), 8)), 8))))
    first = next(node for node in model.graph if node.op_type == "Conv")
    for one, other in ((0, 3), (1, 6)):
        _numbers(first, 1)[other] = _numbers(first, 1)[one]
        _numbers(first, 2)[other] = _numbers(first, 2)[one]
    groups = find_groups(model)
    sizes = np.array([[len(f.atoms) for f in groups.families]], float)
    amount = counted(model, groups, "macs")
    goal = 1 - float((amount(sizes - np.array([[2, 0]])) / amount(sizes))[0])
    step = Prune(macs=goal - 1e-6, criterion="obs", scope="measured", per_round=0.9)
    smaller = run(step, model, ground(model)).model
    kept = _numbers(next(node for node in smaller.graph if node.op_type == "Conv"), 1)
    assert len(kept) == 6
    wanted = _answers(model)
    assert _answers(smaller) == pytest.approx(wanted, abs=2e-2 * np.abs(wanted).max())


def test_rounds_take_what_they_may_and_train_after_each(network: ir.Model, ground: Make) -> None:
    seen: list[int] = []

    def tune(model: ir.Model, step: Finetune, prepare: object = None) -> ir.Model:
        seen.append(cost.parameters(model))
        return model

    step = Prune(
        parameters=0.5,
        criterion="l2",
        scope="global",
        per_round=0.25,
        compensate=False,
        finetune=Finetune(epochs=1),
    )
    done = run(step, network, ground(network, tune=tune))
    whole = cost.parameters(network)
    assert len(seen) == len(milestones(whole, whole / 2, 0.25)) == 3
    for before, after in zip([whole, *seen], seen, strict=False):
        assert 0.7 < after / before < 0.85
    assert cost.parameters(done.model) == seen[-1] <= whole / 2
    assert "removed in 3 rounds" in done.told


def test_taylor_takes_the_loss_where_there_are_labels(
    network: ir.Model, ground: Make, samples: Callable[..., Dataset]
) -> None:
    step = Prune(macs=0.3, criterion="taylor", scope="global", compensate=False, per_round=0.9)
    train = samples(network, 32, labels=True)
    assert "taylor of the loss" in run(step, network, ground(network, train=train)).told
    assert "without labels" in run(step, network, ground(network)).told


def test_what_no_weight_reads_is_judged_where_it_is_made(ground: Make) -> None:
    """Queries and keys of an attention: products of two activations read them, biases are part of them."""
    model = SEQUENTIAL["non_local"]()
    step = Prune(macs=0.2, criterion="taylor", scope="layer", compensate=False)
    assert "removed" in run(step, model, ground(model)).told


def test_what_is_protected_and_what_must_stay_does(network: ir.Model, ground: Make) -> None:
    convs = [node for node in network.graph if node.op_type == "Conv"]
    step = Prune(
        macs=0.2,
        criterion="l2",
        scope="global",
        compensate=False,
        protect=(convs[1].name or "",),
        keep=0.7,
    )
    smaller = run(step, network, ground(network)).model
    widths = {n.name: len(_numbers(n, 1)) for n in smaller.graph if n.op_type == "Conv"}
    assert widths[convs[1].name] == 12
    assert all(widths[n.name] >= 0.7 * len(_numbers(n, 1)) for n in convs)


def test_the_targets_alignment_and_the_given_one(network: ir.Model, ground: Make) -> None:
    step = Prune(macs=0.3, criterion="l2", scope="global", compensate=False, per_round=0.9)
    for asked, on, multiple in (
        (step, ground(network, align=4), 2),
        (step.model_copy(update={"align": 4}), ground(network), 4),
    ):
        smaller = run(asked, network, on).model
        widths = [len(_numbers(n, 1)) for n in smaller.graph if n.op_type == "Conv"]
        assert all(width % multiple == 0 for width in widths)


def test_latency_and_size_are_goals(network: ir.Model, ground: Make) -> None:
    def latency(model: ir.Model) -> float:
        return 1e-3 * sum(len(_numbers(n, 1)) for n in model.graph if n.op_type == "Conv")

    step = Prune(latency=0.3, criterion="l2", scope="global", compensate=False, per_round=0.9)
    smaller = run(step, network, ground(network, latency=latency)).model
    assert 0.6 < latency(smaller) / latency(network) <= 0.7
    wanted = weight_bytes(network) * 2 // 3
    step = Prune(size=wanted, criterion="l2", scope="layer", compensate=False, per_round=0.9)
    assert 0.85 * wanted < weight_bytes(run(step, network, ground(network)).model) <= wanted


def test_what_cannot_work_is_said_before_anything_runs(network: ir.Model, ground: Make) -> None:
    on = ground(network)
    name = network.graph[0].name or ""
    with pytest.raises(UsageError, match="the name of no node") as refused:
        check(Prune(macs=0.3, protect=(name + "x",)), network, on)
    assert name in (refused.value.hint or "")
    with pytest.raises(UsageError, match=r"cannot be reached: with keep = 0\.9"):
        check(Prune(macs=0.8, keep=0.9), network, on)
    with pytest.raises(UsageError, match="and there are none") as refused:
        check(Prune(macs=0.3), network, ground(network, samples=None))
    assert "--data samples.npz" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="nothing to remove") as refused:
        check(Prune(macs=0.3, protect=("*",)), network, on)
    assert "it is protected" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="nothing to remove") as refused:
        check(Prune(macs=0.3, align=64), network, on)
    assert "align = 64" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="nothing predicts the latency"):
        check(Prune(latency=0.3), network, on)
