"""Recurrent networks against ONNX Runtime in every form, gradients, and torch's own modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

TIME, BATCH, SIZE, HIDDEN = 4, 3, 2, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def parts(op: str, count: int, *, layout: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    gates = GATES[op]
    state = (BATCH, count, HIDDEN) if layout else (count, BATCH, HIDDEN)
    shapes = {
        "x": (BATCH, TIME, SIZE) if layout else (TIME, BATCH, SIZE),
        "w": (count, gates * HIDDEN, SIZE),
        "r": (count, gates * HIDDEN, HIDDEN),
        "b": (count, 2 * gates * HIDDEN),
        "h": state,
        "c": state,
        "p": (count, 3 * HIDDEN),
    }
    return {name: (rng.standard_normal(shape) / 2).astype(np.float32) for name, shape in shapes.items()}


def text(op: str, attributes: str = "", inputs: str = "x, w, r, b") -> str:
    outputs = ["y", "yh", "yc"][: 3 if op == "LSTM" else 2]
    declared = ", ".join(f"float[{o}0,{o}1,{o}2{',y3' if o == 'y' else ''}] {o}" for o in outputs)
    return (
        f"g (float[t,n,i] x) => ({declared}) {{ {', '.join(outputs)} = "
        f"{op}<hidden_size={HIDDEN}{', ' if attributes else ''}{attributes}>({inputs}) }}"
    )


FORMS = {
    "plain": ("LSTM GRU RNN", "", "x, w, r"),
    "bias": ("LSTM GRU RNN", "", "x, w, r, b"),
    "reverse": ("LSTM GRU RNN", 'direction="reverse"', "x, w, r, b, , h"),
    "both ways": ("LSTM GRU RNN", 'direction="bidirectional"', "x, w, r, b, , h"),
    "lengths": ("LSTM GRU RNN", "", "x, w, r, b, l, h"),
    "lengths reverse": ("LSTM GRU RNN", 'direction="reverse"', "x, w, r, b, l, h"),
    "lengths both ways": ("LSTM GRU RNN", 'direction="bidirectional"', "x, w, r, b, l, h"),
    "clip": ("LSTM GRU RNN", "clip=0.2", "x, w, r, b"),
    "late": ("GRU", "linear_before_reset=1", "x, w, r, b, , h"),
    "late both ways": ("GRU", 'linear_before_reset=1, direction="bidirectional"', "x, w, r, b, , h"),
    "late lengths": ("GRU", 'linear_before_reset=1, direction="bidirectional"', "x, w, r, b, l, h"),
    "late activations": ("GRU", 'linear_before_reset=1, activations=["Softsign", "Softplus"]', "x, w, r, b"),
    "cell state": ("LSTM", "", "x, w, r, b, , h, c"),
    "peepholes": ("LSTM", 'direction="bidirectional"', "x, w, r, b, , h, c, p"),
    "coupled": ("LSTM", "input_forget=1", "x, w, r, b, , h, c, p"),
    "relu": ("RNN", 'activations=["Relu"]', "x, w, r, b, , h"),
    "two activations": ("RNN", 'direction="bidirectional", activations=["Relu", "Sigmoid"]', "x, w, r, b"),
    "alphas": (
        "LSTM",
        'activations=["HardSigmoid", "Elu", "ScaledTanh"], activation_alpha=[0.3, 0.7, 1.2], '
        "activation_beta=[0.4, 0.9]",
        "x, w, r, b",
    ),
    "default alphas": ("GRU", 'activations=["HardSigmoid", "LeakyRelu"]', "x, w, r, b"),
    "affine": ("RNN", 'activations=["Affine"], activation_alpha=[0.5], activation_beta=[0.1]', "x, w, r, b"),
    "threshold": ("RNN", 'activations=["ThresholdedRelu"], activation_alpha=[0.1]', "x, w, r, b"),
}
EACH = [(op, form) for form, (ops, _, _) in FORMS.items() for op in ops.split()]


def given(op: str, form: str) -> tuple[str, np.ndarray, dict[str, np.ndarray]]:
    _, attributes, inputs = FORMS[form]
    count = 2 if "bidirectional" in attributes else 1
    arrays = parts(op, count) | {"l": np.array([4, 1, 3], np.int32)}
    named = [name.strip() for name in inputs.split(",")]
    constants = {name: arrays[name] for name in named if name not in ("", "x")}
    return text(op, attributes, inputs), arrays["x"], constants


@pytest.mark.parametrize(("op", "form"), EACH)
def test_as_onnx_runtime_does_it(op, form, like_ort):
    graph, x, constants = given(op, form)
    like_ort(graph, x, rtol=1e-4, atol=1e-5, **constants)


@pytest.mark.parametrize(
    ("op", "form"),
    [(op, "bias") for op in GATES]
    + [(op, "lengths both ways") for op in GATES]
    + [("GRU", "late both ways"), ("LSTM", "peepholes"), ("LSTM", "alphas"), ("LSTM", "coupled")],
)
def test_gradients(op, form, gradcheck):
    graph, x, constants = given(op, form)
    lengths = constants.pop("l", None)
    names = list(constants)
    graph = graph.replace("float[t,n,i] x", ", ".join(["float[t,n,i] x", *(f"float[q] {n}" for n in names)]))
    gradcheck(graph, x, *constants.values(), fast=True, **({} if lengths is None else {"l": lengths}))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_batch_first_is_the_same_turned(op, direction, run):
    count = 2 if direction == "bidirectional" else 1
    first = parts(op, count)
    x, h = first.pop("x"), first["h"]
    constants = {name: first[name] for name in "wrb"}
    flat = run(text(op, f'direction="{direction}"', "x, w, r, b, , h"), x, h=h, **constants)
    turned = run(
        text(op, f'direction="{direction}", layout=1', "x, w, r, b, , h"),
        x.transpose(1, 0, 2),
        h=h.transpose(1, 0, 2),
        **constants,
    )
    torch.testing.assert_close(turned[0], flat[0].permute(2, 0, 1, 3))
    torch.testing.assert_close(turned[1], flat[1].transpose(0, 1))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("both", [False, True])
def test_the_usual_forms_are_torch_itself(op, both, run):
    """nn.LSTM, nn.GRU and nn.RNN with the same weights say the same bit for bit."""
    module = getattr(nn, op)(SIZE, HIDDEN, bidirectional=both)
    order = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}[op]
    count = 2 if both else 1

    def sorted_(name: str) -> np.ndarray:
        tensors = [getattr(module, name + "_l0" + "_reverse" * i).detach() for i in range(count)]
        chunks = [t.chunk(GATES[op]) for t in tensors]
        return torch.stack([torch.cat([c[place] for place in order]) for c in chunks]).numpy()

    b = np.concatenate([sorted_("bias_ih"), sorted_("bias_hh")], 1)
    direction = "bidirectional" if both else "forward"
    late = ", linear_before_reset=1" if op == "GRU" else ""
    x = parts(op, count)["x"]
    found = run(
        text(op, f'direction="{direction}"{late}'), x, w=sorted_("weight_ih"), r=sorted_("weight_hh"), b=b
    )
    with torch.no_grad():
        y, last = module(torch.from_numpy(x))
    assert torch.equal(found[0].transpose(1, 2).reshape(y.shape), y)
    assert torch.equal(found[1], last[0] if op == "LSTM" else last)


def test_mixed_precision(run):
    arrays = parts("LSTM", 1)
    constants = {name: torch.from_numpy(arrays[name]).numpy() for name in "wrb"}
    exact = run(text("LSTM"), arrays["x"], **constants)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(text("LSTM"), torch.from_numpy(arrays["x"]).bfloat16(), **constants)
    torch.testing.assert_close(found[0].float(), exact[0], atol=0.03, rtol=0.03)


def test_an_unknown_activation_is_named(run):
    arrays = parts("RNN", 1)
    with pytest.raises(Exception, match="activation swirl"):
        run(text("RNN", 'activations=["Swirl"]', "x, w, r"), arrays["x"], w=arrays["w"], r=arrays["r"])
