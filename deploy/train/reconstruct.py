"""Block reconstruction (Li et al., "BRECQ", ICLR 2021): all weights of a unit are rounded together, so that
what leaves the unit is what leaves it in the float graph.

Each weight is its lower neighbour plus a rectified sigmoid; the mean squared error at the unit's end falls by
gradient, first free, then with a penalty that drives every weight to one of its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deploy.execute.ops.quant import along
from deploy.spec.plan import TensorPlan
from deploy.spec.tensors import RANGES
from deploy.train.quadratic import logits_of, penalty, softly
from deploy.train.units import Pieces, Quantized, Stop, error

_RATE, _PENALTY = 3e-2, 10.0
_WARM = 0.2
_FALLS = 0.995
"""The free phase ends where a round over all batches leaves more than so much of the error."""
_LEAN = 0.5
"""How far a weight begins from its float value towards the rounding that it came with."""


@dataclass(frozen=True)
class Weight:
    """A weight under rounding. ``aim`` is it in units of its ``scale``, kept within the codes; ``low`` and
    ``high`` are its neighbours; ``codes`` what it is rounded to now."""

    name: str
    kind: np.dtype[np.generic]
    floats: Tensor
    scale: Tensor
    aim: Tensor
    low: Tensor
    high: Tensor
    codes: Tensor

    @classmethod
    def of(cls, name: str, array: np.ndarray, codes: np.ndarray, plan: TensorPlan, largest: int) -> Weight:
        """The weight of these float values and ``codes``; the latter in no more than ``largest`` or the type
        of the plan holds."""
        floats = torch.from_numpy(np.array(array, np.float32))
        scale = along(torch.tensor(plan.scale, dtype=torch.float32), floats, plan.axis or 0, 0)
        limit = min(largest, RANGES[plan.type][1])
        aim = (floats.double() / scale.double()).clamp(-limit, limit).float()
        given = torch.from_numpy(codes.astype(np.float32))
        return cls(name, codes.dtype, floats, scale, aim, aim.floor(), aim.ceil(), given)

    def values(self) -> Tensor:
        """What the codes stand for."""
        return self.codes * self.scale

    def integers(self) -> np.ndarray:
        """The codes, as they are stored."""
        return self.codes.numpy().astype(self.kind)


@dataclass(frozen=True)
class Answer:
    """Codes by name after ``steps``; ``late`` where the clock ended it."""

    codes: dict[str, Tensor]
    steps: int
    late: bool


def reconstruct(
    pieces: Pieces,
    stop: Stop,
    plan: Quantized,
    weights: Sequence[Weight],
    seen: Sequence[int],
    steps: int,
    seed: int,
    deadline: float,
) -> Answer:
    """Round ``weights`` of the unit at ``stop`` in about ``steps`` steps on the batches ``seen``.

    What it gives need not be better: judge it on samples held out.
    """
    soft = Quantized(plan.tensors, dict(plan.constants), plan.scales)
    logits = {
        w.name: logits_of(
            (w.aim - w.low) * (1 - _LEAN) + (w.codes - w.low).clamp(0, 1) * _LEAN
        ).requires_grad_()
        for w in weights
    }
    count = sum(w.aim.numel() for w in weights)
    optimizer = torch.optim.Adam(logits.values(), lr=_RATE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        losses = [_error(pieces, stop, plan, batch) for batch in seen]
        unit = torch.stack(losses).mean().clamp_min(1e-12)
    warm = max(1, int(_WARM * steps))
    hardening = done = 0
    before, recent = float("inf"), list[float]()
    while hardening < steps - warm:
        for batch in torch.randperm(len(seen), generator=generator).tolist():
            shares = {name: softly(logit) for name, logit in logits.items()}
            for w in weights:
                soft.constants[w.name] = (w.low + shares[w.name] * (w.high - w.low)) * w.scale
            loss = _error(pieces, stop, soft, seen[batch]) / unit
            recent.append(loss.item())
            if done >= warm:
                progress = hardening / (steps - warm)
                costs = torch.stack([penalty(share, progress) for share in shares.values()]).sum()
                loss = loss + _PENALTY / count * costs
                hardening += 1
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch declares it so
            optimizer.step()
            done += 1
            if time.monotonic() > deadline or hardening >= steps - warm:
                break
        late = time.monotonic() > deadline
        if late:
            break
        now, recent = sum(recent) / len(recent), []
        if done < warm and now > _FALLS * before:
            warm_left, warm = warm - done, done
            steps -= warm_left
        before = now
    codes = {w.name: torch.where(softly(logits[w.name].detach()) >= 0.5, w.high, w.low) for w in weights}
    return Answer(codes, done, late)


def _error(pieces: Pieces, stop: Stop, plan: Quantized, batch: int) -> Tensor:
    return error(pieces.run(stop.steps, stop.given[batch], stop.leaving, plan), stop.targets[batch])
