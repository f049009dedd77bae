"""Weights that do not stay in a core's own cache from one inference to the next.

Kernels are measured in chains whose weights, where they are small, stay there. In a network that has more of
them the same weights come from behind it every time. Where a product has many rows that is hidden behind
arithmetic; where it has one, each weight is read for one multiplication, and the product takes as long as its
weights do (the memory side of a roofline: Williams, Waterman and Patterson 2009). So do the steps of a
recurrent layer written out, each of which has its own copy of the weights in some runtimes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy.predict.kernels import Kernel
from deploy.spec.profile import Figure
from deploy.spec.tensors import INTEGER

LONGEST = 34
"""Kernels in a chain that is measured, at most."""
_ONE_ROW = 1.5
"""Multiplications for each weight up to which a product has one row."""


@dataclass(frozen=True)
class Cache:
    """One core's own cache of ``size`` bytes; a byte from behind it takes ``beyond`` milliseconds more."""

    size: int
    beyond: float

    @classmethod
    def of(cls, facts: Mapping[str, Figure]) -> Cache | None:
        """From a machine's figures; None where they do not tell."""
        size, near, far = (_number(facts, name) for name in ("l2", "read_l2", "read_l3"))
        far = far or _number(facts, "read_memory")
        if not size or not near or not far:
            return None
        return cls(int(size * 1024), max(0.0, 1 / far - 1 / near) / 1e6)

    def extra(self, kernels: Sequence[Kernel]) -> list[float]:
        """Milliseconds that each kernel of a network takes more than in a chain of its like."""
        if sum(kernel.weights for kernel in kernels) <= self.size:
            return [0.0] * len(kernels)
        return [kernel.weights * self.beyond if self._waits(kernel) else 0.0 for kernel in kernels]

    def _waits(self, kernel: Kernel) -> bool:
        """Whether it is a product of one row that was measured with its weights in the cache."""
        each = 1 if kernel.precision in INTEGER else 4
        one_row = kernel.op == "gemm" and kernel.macs * each <= _ONE_ROW * kernel.weights
        return one_row and kernel.weights * LONGEST <= self.size


def _number(facts: Mapping[str, Figure], name: str) -> float:
    figure = facts.get(name)
    return float(figure.value) if figure is not None and isinstance(figure.value, int | float) else 0.0
