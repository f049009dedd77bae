"""Products of matrices, and attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Ready, Refused, sized
from backends.coreml.interpret.ops.activation import softmax_of


def matmul(call: Call) -> np.ndarray:
    x, y = call.array("x"), call.array("y")
    if call.flag("transpose_x") and x.ndim > 1:
        x = x.swapaxes(-1, -2)
    if call.flag("transpose_y") and y.ndim > 1:
        y = y.swapaxes(-1, -2)
    return np.matmul(x, y)


def linear(call: Call) -> np.ndarray:
    names, compute = ready_linear(call)
    return compute(*(call.array(name) for name in names))


def ready_linear(call: Call) -> tuple[tuple[str, ...], Callable[..., np.ndarray]]:
    weight, bias = call.array("weight"), call.maybe("bias")
    if weight.ndim != 2:
        raise Refused(f"weights of rank {weight.ndim}")
    turned = weight.T

    def compute(x: np.ndarray) -> np.ndarray:
        y = np.matmul(x, turned)
        if bias is not None:
            y += bias
        return y

    return ("x",), compute


def einsum(call: Call) -> np.ndarray:
    """Of two tensors, as one batched product where the equation is that, else by NumPy."""
    values, equation = call.arrays("values"), call.text("equation").replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    letters = set(inputs) | set(output)
    plain = all(c.isalpha() and c.isascii() for c in letters - {","})
    if not arrow or len(terms) != len(values) or not plain or len(equation) > 100:
        raise Refused(f"equation {equation[:100]}")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, values, strict=True):
        if len(term) != value.ndim:
            raise Refused(f"'{term}' for a tensor of rank {value.ndim}")
        for letter, size in zip(term, value.shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    if not set(output) <= set(sizes):
        raise Refused(f"equation {equation}")
    sized([sizes[letter] for letter in output])
    found: np.ndarray = np.einsum(equation, *values, optimize=True)
    return found


def attention(call: Call) -> np.ndarray:
    """As PyTorch's ``scaled_dot_product_attention`` without dropout."""
    query, key, value = call.array("query"), call.array("key"), call.array("value")
    mask = call.maybe("attn_mask")
    scale = np.float32(1 / np.sqrt(query.shape[-1]))
    scores = np.matmul(query * scale, key.swapaxes(-1, -2))
    if mask is not None:
        scores = np.where(mask, scores, np.float32(-np.inf)) if mask.dtype.kind == "b" else scores + mask
    return np.matmul(softmax_of(scores, -1), value)


KERNELS: Mapping[str, Kernel] = {
    "matmul": matmul, "linear": linear, "einsum": einsum, "scaled_dot_product_attention": attention,
}  # fmt: skip
READY: Mapping[str, Ready] = {"linear": ready_linear}
