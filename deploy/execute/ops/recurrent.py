"""LSTM, GRU and RNN: torch's own fused loops where they compute the same, else step by step.

    X (time, batch, size), W (directions, gates * hidden, size), R (directions, gates * hidden, hidden),
    B (directions, 2 * gates * hidden), states (directions, batch, hidden)
    -> Y (time, directions, batch, hidden), then the last states; with layout 1 the batch stands first

Every step is masked by the lengths: a sequence that has ended, or backwards has not begun, keeps its state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

Activation = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]
Cell = Callable[[Tensor, States, "Weights"], States]

_DEFAULTS: dict[str, tuple[float, ...]] = {
    "leakyrelu": (0.01,),
    "thresholdedrelu": (1.0,),
    "elu": (1.0,),
    "hardsigmoid": (0.2, 0.5),
    "affine": (1.0, 0.0),
    "scaledtanh": (1.0, 1.0),
}
"""Activations that take alpha, or alpha and beta."""

_PLAIN: dict[str, Activation] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": functional.softsign,
    "softplus": functional.softplus,
}


@dataclass(frozen=True)
class Weights:
    """What one direction computes with; ``recurrent`` is transposed, ``bias`` that of the recurrence."""

    recurrent: Tensor
    bias: Tensor
    peepholes: tuple[Tensor, ...]
    activations: Sequence[Activation]


@dataclass(frozen=True)
class Settings:
    """The attributes that all three have."""

    directions: int
    reverse: bool
    batch_first: bool
    clip: float | None
    activations: Sequence[Sequence[Activation]]
    names: Sequence[str]

    def clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


def _settings(node: Node, usual: Sequence[str]) -> Settings:
    direction = node.string("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    given = node.ir.attributes.get_strings("activations") or list(usual) * count
    names = [name.lower() for name in given]
    # Alphas and betas are a list each, in the order of those activations that take one.
    alphas, betas = iter(node.reals("activation_alpha")), iter(node.reals("activation_beta"))
    made = []
    for name in names:
        if name in _PLAIN:
            made.append(_PLAIN[name])
            continue
        if name not in _DEFAULTS:
            raise node.unsupported(f"activation {name}")
        numbers = [next(own, least) for own, least in zip((alphas, betas), _DEFAULTS[name], strict=False)]
        made.append(_activation(name, *numbers))
    each = len(usual)
    clip = node.real("clip") if "clip" in node.ir.attributes else None
    return Settings(
        directions=count,
        reverse=direction == "reverse",
        batch_first=node.flag("layout"),
        clip=clip,
        activations=[made[i * each : (i + 1) * each] for i in range(count)],
        names=names,
    )


def _activation(name: str, alpha: float, beta: float = 0.0) -> Activation:
    functions: dict[str, Activation] = {
        "leakyrelu": lambda x: functional.leaky_relu(x, alpha),
        "thresholdedrelu": lambda x: torch.where(x > alpha, x, 0.0),
        "elu": lambda x: functional.elu(x, alpha),
        "hardsigmoid": lambda x: (alpha * x + beta).clamp(0, 1),
        "affine": lambda x: alpha * x + beta,
        "scaledtanh": lambda x: alpha * torch.tanh(beta * x),
    }
    return functions[name]


def _steps(
    settings: Settings,
    cell: Cell,
    gates: int,
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None],
    lengths: Tensor | None,
    states: Sequence[Tensor | None],
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Y and the last states, step by step, time first."""
    w, r, b = weights
    time, batch, hidden = x.shape[0], x.shape[1], r.shape[-1]
    outputs, lasts = [], []
    for direction in range(settings.directions):
        bias = x.new_zeros(2 * gates * hidden) if b is None else b[direction]
        of_input, of_recurrence = bias.chunk(2)
        parts = () if peepholes is None else peepholes[direction].chunk(3)
        given = Weights(r[direction].T, of_recurrence, parts, settings.activations[direction])
        now: States = tuple(x.new_zeros(batch, hidden) if s is None else s[direction] for s in states)
        fed = functional.linear(x, w[direction], of_input).unbind(0)
        backward = settings.reverse or direction == 1
        rows: list[Tensor] = []
        for step in reversed(range(time)) if backward else range(time):
            after = cell(fed[step], now, given)
            if lengths is None:
                now = after
                rows.append(now[0])
            else:
                alive = (step < lengths)[:, None]
                now = tuple(torch.where(alive, new, old) for new, old in zip(after, now, strict=True))
                rows.append(torch.where(alive, now[0], 0.0))
        outputs.append(torch.stack(rows[::-1] if backward else rows))
        lasts.append(now)
    return (torch.stack(outputs, 1), *(torch.stack(parts) for parts in zip(*lasts, strict=True)))


def _fused(
    settings: Settings,
    run: Callable[..., tuple[Tensor, ...]],
    order: Sequence[int],
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor | None],
    states: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """The same through torch's own loop; ``order`` says where its gates stand in ONNX's tensors."""
    w, r, b = weights
    time, batch, hidden, count = x.shape[0], x.shape[1], r.shape[-1], settings.directions

    def sorted_(tensor: Tensor) -> Tensor:
        parts = tensor.chunk(len(order))
        return torch.cat([parts[place] for place in order]) if len(order) > 1 else tensor

    flat: list[Tensor] = []
    for direction in range(count):
        flat += [sorted_(w[direction]), sorted_(r[direction])]
        if b is not None:
            flat += [sorted_(part) for part in b[direction].chunk(2)]
    begin = [x.new_zeros(count, batch, hidden) if s is None else s.to(x.dtype) for s in states]
    hx = begin[0] if len(begin) == 1 else begin
    turned = x.flip(0) if settings.reverse else x
    y, *last = run(turned, hx, flat, b is not None, 1, 0.0, False, count == 2, False)
    y = y.flip(0) if settings.reverse else y
    return (y.reshape(time, batch, count, hidden).transpose(1, 2), *last)


def _arranged(
    settings: Settings, compute: Callable[..., tuple[Tensor, ...]]
) -> Callable[..., tuple[Tensor, ...]]:
    """``compute`` with the batch where the layout wants it."""
    if not settings.batch_first:
        return compute

    def run(x: Tensor, states: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        begin = [None if s is None else s.transpose(0, 1) for s in states]
        y, *last = compute(x.transpose(0, 1), begin)
        return (y.permute(2, 0, 1, 3), *(s.transpose(0, 1) for s in last))

    return run


@ops.kernel("LSTM")
def lstm(node: Node) -> Kernel:
    settings, coupled = _settings(node, ("sigmoid", "tanh", "tanh")), node.flag("input_forget")
    usual = list(settings.names) == ["sigmoid", "tanh", "tanh"] * settings.directions
    usual = usual and settings.clip is None and not coupled

    def cell(fed: Tensor, now: States, given: Weights) -> States:
        (h, c), (f, g, last) = now, given.activations
        i_, o_, f_, c_ = torch.addmm(given.bias, h, given.recurrent).add(fed).chunk(4, -1)
        peek = given.peepholes
        i = f(settings.clipped(i_ + peek[0] * c if peek else i_))
        forget = 1 - i if coupled else f(settings.clipped(f_ + peek[2] * c if peek else f_))
        c = forget * c + i * g(settings.clipped(c_))
        o = f(settings.clipped(o_ + peek[1] * c if peek else o_))
        return o * last(c), c

    def run(
        x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
        h: Tensor | None = None, c: Tensor | None = None, p: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        def compute(x: Tensor, states: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
            if usual and lengths is None and p is None:
                return _fused(settings, torch.lstm, (0, 2, 3, 1), x, (w, r, b), states)
            return _steps(settings, cell, 4, x, (w, r, b), lengths, states, p)

        return _arranged(settings, compute)(x, (h, c))

    return run


@ops.kernel("GRU")
def gru(node: Node) -> Kernel:
    settings, late = _settings(node, ("sigmoid", "tanh")), node.flag("linear_before_reset")
    usual = list(settings.names) == ["sigmoid", "tanh"] * settings.directions
    usual = usual and settings.clip is None and late

    def cell(fed: Tensor, now: States, given: Weights) -> States:
        (h,), (f, g) = now, given.activations
        hidden = h.shape[-1]
        gates = torch.addmm(given.bias[: 2 * hidden], h, given.recurrent[:, : 2 * hidden])
        z, r = f(settings.clipped(gates + fed[:, : 2 * hidden])).chunk(2, -1)
        rows, bias = given.recurrent[:, 2 * hidden :], given.bias[2 * hidden :]
        back = r * torch.addmm(bias, h, rows) if late else torch.addmm(bias, r * h, rows)
        new = g(settings.clipped(fed[:, 2 * hidden :] + back))
        return ((1 - z) * new + z * h,)

    def run(
        x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
        h: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        def compute(x: Tensor, states: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
            if usual and lengths is None:
                return _fused(settings, torch.gru, (1, 0, 2), x, (w, r, b), states)
            return _steps(settings, cell, 3, x, (w, r, b), lengths, states)

        return _arranged(settings, compute)(x, (h,))

    return run


@ops.kernel("RNN")
def rnn(node: Node) -> Kernel:
    settings = _settings(node, ("tanh",))
    kinds = set(settings.names)
    fused = {"tanh": torch.rnn_tanh, "relu": torch.rnn_relu}.get(settings.names[0])
    usual = len(kinds) == 1 and settings.clip is None

    def cell(fed: Tensor, now: States, given: Weights) -> States:
        (h,), (f,) = now, given.activations
        return (f(settings.clipped(torch.addmm(given.bias, h, given.recurrent) + fed)),)

    def run(
        x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None, lengths: Tensor | None = None,
        h: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        def compute(x: Tensor, states: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
            if usual and fused is not None and lengths is None:
                return _fused(settings, fused, (0,), x, (w, r, b), states)
            return _steps(settings, cell, 1, x, (w, r, b), lengths, states)

        return _arranged(settings, compute)(x, (h,))

    return run
