"""GELU, for which TensorFlow Lite Micro has no kernel, by the float kernels that it has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from backends.tflite.emitter import Emitter
from backends.tflite.network import Operator, Options, Tensor

_P = 0.3275911
_COEFFICIENTS = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""Of a polynomial in 1 / (1 + p z) that makes erf(z) to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
_OPTIONS = {
    "ABS": "AbsOptions", "ADD": "AddOptions", "DIV": "DivOptions", "EXP": "ExpOptions", "MUL": "MulOptions",
    "NEG": "NegOptions", "SQUARE": "SquareOptions", "SUB": "SubOptions", "TANH": "",
}  # fmt: skip


class Formula:
    """Operators that compute one result step by step, element by element."""

    def __init__(self, out: Emitter, replaced: Operator, numbers: dict[float, int]) -> None:
        """In place of ``replaced``; ``numbers`` are the constants that the network has already."""
        self.operators: list[Operator] = []
        self._out, self._replaced, self._numbers = out, replaced, numbers
        self._result = out.tensors[replaced.outputs[0]]

    def number(self, value: float) -> int:
        """A lone constant, once for the whole network."""
        if value not in self._numbers:
            self._numbers[value] = self._out.numbers(np.array(value, np.float32), "number")
        return self._numbers[value]

    def step(self, code: str, *reads: int | float, last: bool = False) -> int:
        """One operator; what is no tensor's number is a constant. The last one makes the result."""
        inputs = tuple(self.number(read) if isinstance(read, float) else read for read in reads)
        result, index = self._result, self._replaced.outputs[0]
        if not last:
            index = self._out.add(Tensor(f"{result.name}/step", result.shape, result.dtype, result.order))
        options: Options = (_OPTIONS[code], {})
        self.operators.append(Operator(code, 1, inputs, (index,), options, self._replaced.node))
        return index


def gelu(operator: Operator, out: Emitter, numbers: dict[float, int]) -> Sequence[Operator]:
    """x / 2 (1 + erf(x / sqrt 2)), which is (x + |x| erf(|x| / sqrt 2)) / 2; or its form with tanh."""
    formula, x = Formula(out, operator, numbers), operator.inputs[0]
    step = formula.step
    if operator.options[1].get("approximate"):
        inner = step("ADD", step("MUL", step("SQUARE", x), 0.044715), 1.0)
        bent = step("TANH", step("MUL", step("MUL", inner, x), math.sqrt(2 / math.pi)))
        step("MUL", step("MUL", x, step("ADD", bent, 1.0)), 0.5, last=True)
        return formula.operators
    size = step("ABS", x)
    z = step("MUL", size, math.sqrt(0.5))
    t = step("DIV", 1.0, step("ADD", step("MUL", z, _P), 1.0))
    sum_ = step("MUL", t, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        sum_ = step("MUL", step("ADD", sum_, coefficient), t)
    fading = step("EXP", step("NEG", step("SQUARE", z)))
    erf = step("SUB", 1.0, step("MUL", sum_, fading))
    step("MUL", step("ADD", step("MUL", size, erf), x), 0.5, last=True)
    return formula.operators
