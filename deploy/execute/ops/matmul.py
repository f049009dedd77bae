"""Products of matrices: MatMul, Gemm, MatMulInteger, Einsum, Det."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
"""Types whose products torch does not have: they are computed in int64."""


@ops.kernel("MatMul")
def matmul(_: Node) -> Kernel:
    def run(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype in _UNSIGNED:
            return torch.matmul(a.long(), b.long()).to(a.dtype)
        return torch.matmul(a, b)

    return run


@ops.kernel("Gemm")
def gemm(node: Node) -> Kernel:
    alpha, beta = node.real("alpha", 1.0), node.real("beta", 1.0)
    turn_a, turn_b = node.flag("transA"), node.flag("transB")
    plain = alpha == beta == 1.0

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        if not a.is_floating_point():
            return whole(a, b, c)
        if turn_a:
            a = a.t()
        if plain and turn_b and (c is None or c.ndim == 1):
            return functional.linear(a, b, c)
        if turn_b:
            b = b.t()
        if c is not None:
            return torch.addmm(c, a, b, beta=beta, alpha=alpha)
        y = torch.mm(a, b)
        return y if alpha == 1.0 else alpha * y

    def whole(a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
        """Integers: with a scale that is no whole number the result is cut."""
        left, right = a.long().t() if turn_a else a.long(), b.long().t() if turn_b else b.long()
        y = _scaled(torch.mm(left, right), alpha)
        return (y if c is None else y + _scaled(c.long(), beta)).to(a.dtype)

    return run


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x * int(factor) if factor.is_integer() else (x.double() * factor).long()


@ops.kernel("MatMulInteger")
def matmul_integer(_: Node) -> Kernel:
    def run(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
        # In float64, which is exact up to 2^53 and which every device can multiply.
        left, right = a.double(), b.double()
        if a_zero is not None:
            zero = a_zero.double()
            left = left - (zero.unsqueeze(-1) if zero.ndim == 1 and zero.numel() > 1 else zero)  # one per row
        if b_zero is not None:
            right = right - b_zero.double()
        return torch.matmul(left, right).to(torch.int32)

    return run


@ops.kernel("Einsum")
def einsum(node: Node) -> Kernel:
    equation = node.string("equation").replace(" ", "")

    def run(*given: Tensor) -> Tensor:
        if given[0].dtype in _UNSIGNED:
            return torch.einsum(equation, *(x.long() for x in given)).to(given[0].dtype)
        return torch.einsum(equation, *given)

    return run


@ops.kernel("Det")
def det(_: Node) -> Kernel:
    def run(x: Tensor) -> Tensor:
        narrow = x.dtype in (torch.float16, torch.bfloat16)
        found: Tensor = torch.linalg.det(x.float() if narrow else x)
        return found.to(x.dtype)

    return run
