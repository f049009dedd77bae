"""Learning rates against closed forms and torch's own schedule; groups; averages."""

from __future__ import annotations

import math

import onnx_ir as ir
import pytest
import torch

from deploy.execute.module import GraphModule
from deploy.spec.finetune import Finetune
from deploy.train.optimize import average, decaying, learning_rate, make_optimizer, set_rate


def rates(step: Finetune, total: int) -> list[float]:
    return [learning_rate(step, i, total) for i in range(total)]


def test_cosine_without_warmup() -> None:
    found = rates(Finetune(lr=0.3, warmup=0), 50)
    assert found == pytest.approx([0.15 * (1 + math.cos(math.pi * i / 50)) for i in range(50)])
    assert found[0] == 0.3


def test_warmup_rises_in_a_straight_line_to_the_top() -> None:
    found = rates(Finetune(lr=1.0, warmup=0.2, schedule="constant"), 20)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:] == [1.0] * 16
    assert max(rates(Finetune(lr=0.5, warmup=0.1), 100)) == 0.5


@pytest.mark.parametrize(("total", "rise"), [(100, 0.3), (57, 0.25), (10, 0.5)])
def test_one_cycle_is_torchs(total: int, rise: float) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=total, pct_start=rise, cycle_momentum=False
    )
    wanted = []
    for _ in range(total):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step() if len(wanted) < total else None
    assert rates(Finetune(lr=0.1, schedule="onecycle", warmup=rise), total) == pytest.approx(wanted)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_trainings_have_a_rate(schedule: str, total: int) -> None:
    step = Finetune.model_validate({"schedule": schedule, "lr": 0.1})
    assert all(0 < rate <= 0.1 for rate in rates(step, total)[:1])


def test_filters_and_matrices_decay_biases_and_norms_do_not(tiny: ir.Model) -> None:
    assert decaying(tiny) == {"w1", "w2", "w3"}


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_groups_of_the_optimizer(tiny: ir.Model, name: str, kind: type[torch.optim.Optimizer]) -> None:
    weights = GraphModule(tiny).named_weights()
    step = Finetune.model_validate({"optimizer": name, "weight_decay": 0.02})
    optimizer = make_optimizer(weights, decaying(tiny), step)
    assert isinstance(optimizer, kind)
    with_decay, without = optimizer.param_groups
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.02, 0.0)
    assert {id(p) for p in with_decay["params"]} == {id(weights[n]) for n in ("w1", "w2", "w3")}
    assert {id(p) for p in without["params"]} == {id(weights[n]) for n in ("scale", "shift", "b2", "b3")}
    set_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_decay_alone_shrinks_only_the_group_that_decays() -> None:
    weights = {n: torch.nn.Parameter(torch.ones(2, 2)) for n in ("matrix", "bias")}
    step = Finetune(lr=0.1, momentum=0, nesterov=False, weight_decay=0.5)
    optimizer = make_optimizer(weights, {"matrix"}, step)
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.allclose(weights["matrix"], torch.full((2, 2), 1 - 0.1 * 0.5))
    assert torch.equal(weights["bias"], torch.ones(2, 2))


def test_the_average_has_its_closed_form() -> None:
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    values = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    running = average(0.8, {"w": start})
    assert running is not None
    for value in values:
        running.update({"w": value})
    shares = torch.tensor([0.2 * 0.8 ** (11 - i) for i in range(12)], dtype=torch.float64)
    wanted = 0.8**12 * start + (shares[:, None] * values).sum(0)
    assert torch.allclose(running.tensors["w"], wanted, atol=1e-12)
    assert average(0, {"w": start}) is None
