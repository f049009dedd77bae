"""Operations on one or two numbers at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Ready, Refused

DTYPES = {
    "fp16": np.float32, "fp32": np.float32, "fp64": np.float64, "int8": np.int8, "uint8": np.uint8,
    "int16": np.int16, "uint16": np.uint16, "int32": np.int32, "uint32": np.uint32, "int64": np.int64,
    "bool": np.bool_,
}  # fmt: skip
"""Types by the names that operations use; float16 travels as float32."""


Unary = Callable[[np.ndarray], np.ndarray]
Binary = Callable[[np.ndarray, np.ndarray], np.ndarray]


def unary(compute: Unary) -> Kernel:
    """A kernel of one operand."""
    return lambda call: compute(call.array("x"))


def binary(compute: Binary) -> Kernel:
    """A kernel of two operands that are broadcast."""
    return lambda call: compute(call.array("x"), call.array("y"))


def ready_unary(compute: Unary) -> Ready:
    return lambda _: (("x",), compute)


def ready_binary(compute: Binary) -> Ready:
    return lambda _: (("x", "y"), compute)


def divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "iu" and y.dtype.kind in "iu":
        return np.trunc(x / y.astype(np.float64))
    return x / y


def floor_div(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # np.floor_divide of floats is computed from the remainder and differs where x / y rounds up to a whole
    return np.floor(x / y) if x.dtype.kind == "f" or y.dtype.kind == "f" else np.floor_divide(x, y)


def power(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "iu" and y.dtype.kind in "iu":
        return np.power(x.astype(np.float64), y)
    return np.power(x, y)


def erf(x: np.ndarray) -> np.ndarray:
    from scipy import special

    found: np.ndarray = special.erf(x)
    return found


def cast(call: Call) -> np.ndarray:
    x, name = call.array("x"), call.text("dtype")
    if name not in DTYPES:
        raise Refused(f"a cast to {name}")
    dtype = DTYPES[name]
    if x.dtype.kind == "U":
        raise Refused("a cast of texts")
    if name == "fp16":
        return x.astype(np.float16).astype(np.float32)
    if np.dtype(dtype).kind in "iu" and x.dtype.kind == "f":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        whole = np.trunc(np.nan_to_num(x, nan=0.0, posinf=high, neginf=low).astype(np.float64))
        return np.clip(whole, low, high).astype(dtype)
    return x.astype(dtype)


def clip(call: Call) -> np.ndarray:
    x = call.array("x")
    low, high = x.dtype.type(call.number("alpha")), x.dtype.type(call.number("beta"))
    return np.minimum(np.maximum(x, low), high)


def inverse(call: Call) -> np.ndarray:
    x = call.array("x")
    return 1 / (x + x.dtype.type(call.number("epsilon", 1e-4)))


def log(call: Call) -> np.ndarray:
    x = call.array("x")
    return np.log(x + x.dtype.type(call.number("epsilon", 1e-45)))


def rsqrt(call: Call) -> np.ndarray:
    x = call.array("x")
    return 1 / np.sqrt(x + x.dtype.type(call.number("epsilon", 1e-12)))


def select(call: Call) -> np.ndarray:
    condition = call.array("cond") != 0
    if not call.has("a") and not call.has("b"):
        return np.argwhere(condition).astype(np.int32)
    return np.where(condition, call.array("a"), call.array("b"))


def threshold(call: Call) -> np.ndarray:
    x = call.array("x")
    return np.maximum(x, x.dtype.type(call.number("alpha")))


def identity(call: Call) -> np.ndarray:
    return call.array("x")


_UNARY: Mapping[str, Unary] = {
    "abs": np.abs, "acos": np.arccos, "asin": np.arcsin, "atan": np.arctan, "atanh": np.arctanh,
    "ceil": np.ceil, "cos": np.cos, "cosh": np.cosh, "erf": erf, "exp": np.exp, "exp2": np.exp2,
    "floor": np.floor, "logical_not": np.logical_not, "round": np.round, "sign": np.sign, "sin": np.sin,
    "sinh": np.sinh, "sqrt": np.sqrt, "square": np.square, "tan": np.tan, "tanh": np.tanh,
}  # fmt: skip
_BINARY: Mapping[str, Binary] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "real_div": divide, "floor_div": floor_div,
    "mod": np.mod, "pow": power, "maximum": np.maximum, "minimum": np.minimum, "equal": np.equal,
    "not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal, "greater": np.greater,
    "greater_equal": np.greater_equal, "logical_and": np.logical_and, "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}  # fmt: skip
KERNELS: Mapping[str, Kernel] = {
    **{name: unary(compute) for name, compute in _UNARY.items()},
    **{name: binary(compute) for name, compute in _BINARY.items()},
    "cast": cast, "clip": clip, "inverse": inverse, "log": log, "rsqrt": rsqrt, "select": select,
    "threshold": threshold, "identity": identity,
}  # fmt: skip
READY: Mapping[str, Ready] = {
    **{name: ready_unary(compute) for name, compute in _UNARY.items()},
    **{name: ready_binary(compute) for name, compute in _BINARY.items()},
}
