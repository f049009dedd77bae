"""Tensors out of nothing or nearly so: constants, ranges, random numbers, Dropout.

Where a seed is given the numbers are the same in every process; one run after another goes on in the
sequence, as in ONNX Runtime. They are torch's numbers: no two runtimes draw the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.execute.ops.cast import TORCH_TYPES, to_type, torch_type
from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()


@ops.kernel("Constant")
def constant(node: Node) -> Kernel:
    tensor = ir.convenience.get_const_tensor(node.ir.outputs[0])
    if tensor is None:
        raise node.unsupported("a sparse constant")
    value = from_tensor(tensor)
    return lambda: value


def from_tensor(tensor: ir.TensorProtocol) -> Tensor | np.ndarray:
    """An ONNX tensor in torch, a copy; in numpy where torch has no such type."""
    dtype = TORCH_TYPES.get(tensor.dtype)
    array = np.array(tensor.numpy())
    if dtype is None:
        return array
    if dtype in _BITS:
        return torch.from_numpy(array.view(_BITS[dtype])).view(dtype)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


_BITS = {
    torch.bfloat16: np.uint16,
    torch.float8_e4m3fn: np.uint8,
    torch.float8_e4m3fnuz: np.uint8,
    torch.float8_e5m2: np.uint8,
    torch.float8_e5m2fnuz: np.uint8,
    torch.float8_e8m0fnu: np.uint8,
}
"""Types that numpy borrows, and how torch can take them over."""


@ops.kernel("ConstantOfShape")
def constant_of_shape(node: Node) -> Kernel:
    tensor = node.ir.attributes.get_tensor("value")
    value = torch.zeros(1) if tensor is None else from_tensor(tensor)
    if not isinstance(value, Tensor):
        raise node.unsupported(f"torch has no type {value.dtype}")
    number, dtype = value.reshape(()).item(), value.dtype
    given = node.constant(0)
    fixed = None if given is None else [int(size) for size in given]

    def run(shape: Tensor) -> Tensor:
        sizes = shape.tolist() if fixed is None else fixed
        return torch.full(sizes, number, dtype=dtype, device=shape.device)

    return run


@ops.kernel("Range")
def arrange(_: Node) -> Kernel:
    def run(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
        first, last, step = start.item(), limit.item(), delta.item()
        count = max(math.ceil((last - first) / step), 0)
        steps = torch.arange(count, dtype=torch.int64, device=start.device)
        if not start.is_floating_point():
            return (first + steps * step).to(start.dtype)
        return (first + steps.to(torch.float64) * step).to(start.dtype)

    return run


@ops.kernel("EyeLike")
def eye_like(node: Node) -> Kernel:
    dtype, diagonal = torch_type(node, "dtype"), node.integer("k")

    def run(x: Tensor) -> Tensor:
        rows, columns = x.shape
        across = torch.arange(columns, device=x.device) - torch.arange(rows, device=x.device)[:, None]
        return (across == diagonal).to(dtype or x.dtype)

    return run


# Random numbers


class _Source:
    """Torch's generator on the device asked for: one of the node's own where it has a seed."""

    def __init__(self, node: Node) -> None:
        given = node.ir.attributes.get("seed")
        whole = given is not None and given.type == ir.AttributeType.INT  # Dropout's is one
        self._seed = None if given is None else float(given.as_int() if whole else given.as_float())
        self._made: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator | None:
        if self._seed is None:
            return None
        if device not in self._made:
            bits = int(np.float32(self._seed).view(np.uint32))  # seeds may have a fraction
            self._made[device] = torch.Generator(device).manual_seed(bits)
        return self._made[device]


Draw = Callable[[Tensor, torch.Generator | None], Tensor]
"""Fills a tensor of float32 or float64."""


def _normal(node: Node) -> Draw:
    mean, scale = node.real("mean"), node.real("scale", 1.0)
    return lambda x, generator: x.normal_(mean, scale, generator=generator)


def _uniform(node: Node) -> Draw:
    low, high = node.real("low"), node.real("high", 1.0)
    return lambda x, generator: x.uniform_(low, high, generator=generator)


def _drawn(node: Node, distribution: Callable[[Node], Draw]) -> Kernel:
    """RandomNormal, RandomUniform: shape and type are attributes."""
    dtype = torch_type(node, "dtype", ir.DataType.FLOAT) or torch.float32
    sizes, draw, source = node.integers("shape"), distribution(node), _Source(node)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def run() -> Tensor:
        x = torch.empty(sizes, dtype=wide)
        return draw(x, source.on(x.device)).to(dtype)

    return run


def _drawn_like(node: Node, distribution: Callable[[Node], Draw]) -> Kernel:
    dtype, draw, source = torch_type(node, "dtype"), distribution(node), _Source(node)

    def run(like: Tensor) -> Tensor:
        kind = dtype or like.dtype
        wide = torch.float64 if kind == torch.float64 else torch.float32
        x = torch.empty(like.shape, dtype=wide, device=like.device)
        return draw(x, source.on(x.device)).to(kind)

    return run


ops.kernel("RandomNormal")(lambda node: _drawn(node, _normal))
ops.kernel("RandomUniform")(lambda node: _drawn(node, _uniform))
ops.kernel("RandomNormalLike")(lambda node: _drawn_like(node, _normal))
ops.kernel("RandomUniformLike")(lambda node: _drawn_like(node, _uniform))


@ops.kernel("Bernoulli")
def bernoulli(node: Node) -> Kernel:
    dtype, source = torch_type(node, "dtype"), _Source(node)

    def run(chance: Tensor) -> Tensor:
        return to_type(torch.bernoulli(chance, generator=source.on(chance.device)), dtype or chance.dtype)

    return run


@ops.kernel("Multinomial")
def multinomial(node: Node) -> Kernel:
    dtype = torch_type(node, "dtype", ir.DataType.INT32) or torch.int32
    samples, source = node.integer("sample_size", 1), _Source(node)

    def run(log: Tensor) -> Tensor:
        """``log``: [batch, classes], logarithms of probabilities that need not sum to one."""
        chances = torch.softmax(log, -1)
        drawn = torch.multinomial(chances, samples, replacement=True, generator=source.on(log.device))
        return drawn.to(dtype)

    return run


@ops.kernel("Dropout")
def dropout(node: Node) -> Kernel:
    source, with_mask = _Source(node), node.wants(1)
    given, switch = node.constant(1), node.constant(2)
    fixed = None if given is None else float(given)
    if not node.has(2) or (switch is not None and not bool(switch)):
        if not with_mask:
            return lambda x, *_: x
        return lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool))

    def run(x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> tuple[Tensor, Tensor]:
        share = fixed if fixed is not None else 0.5 if ratio is None else float(ratio)
        if share == 0.0 or not (switch is not None or (training is not None and bool(training))):
            return x, torch.ones_like(x, dtype=torch.bool)
        chance = torch.rand(x.shape, device=x.device, generator=source.on(x.device))
        mask = chance >= share
        scale = 1.0 / (1.0 - share) if share < 1.0 else 0.0
        return torch.where(mask, x * scale, 0.0).to(x.dtype), mask

    return run
