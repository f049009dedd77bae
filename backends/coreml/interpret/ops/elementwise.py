"""Operations on one or two numbers at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Refused

DTYPES = {
    "fp16": np.float32, "fp32": np.float32, "fp64": np.float64, "int8": np.int8, "uint8": np.uint8,
    "int16": np.int16, "uint16": np.uint16, "int32": np.int32, "uint32": np.uint32, "int64": np.int64,
    "bool": np.bool_,
}  # fmt: skip
"""Types by the names that operations use; float16 travels as float32."""


def unary(compute: Callable[[np.ndarray], np.ndarray]) -> Kernel:
    """A kernel of one operand."""
    return lambda call: compute(call.array("x"))


def binary(compute: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Kernel:
    """A kernel of two operands that are broadcast."""
    return lambda call: compute(call.array("x"), call.array("y"))


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


KERNELS: Mapping[str, Kernel] = {
    "abs": unary(np.abs), "acos": unary(np.arccos), "asin": unary(np.arcsin), "atan": unary(np.arctan),
    "atanh": unary(np.arctanh), "ceil": unary(np.ceil), "cos": unary(np.cos), "cosh": unary(np.cosh),
    "erf": unary(erf), "exp": unary(np.exp), "exp2": unary(np.exp2), "floor": unary(np.floor),
    "logical_not": unary(np.logical_not), "round": unary(np.round), "sign": unary(np.sign),
    "sin": unary(np.sin), "sinh": unary(np.sinh), "sqrt": unary(np.sqrt), "square": unary(np.square),
    "tan": unary(np.tan), "tanh": unary(np.tanh),
    "add": binary(np.add), "sub": binary(np.subtract), "mul": binary(np.multiply), "real_div": binary(divide),
    "floor_div": binary(floor_div), "mod": binary(np.mod), "pow": binary(power),
    "maximum": binary(np.maximum), "minimum": binary(np.minimum),
    "equal": binary(np.equal), "not_equal": binary(np.not_equal), "less": binary(np.less),
    "less_equal": binary(np.less_equal), "greater": binary(np.greater),
    "greater_equal": binary(np.greater_equal), "logical_and": binary(np.logical_and),
    "logical_or": binary(np.logical_or), "logical_xor": binary(np.logical_xor),
    "cast": cast, "clip": clip, "inverse": inverse, "log": log, "rsqrt": rsqrt, "select": select,
    "threshold": threshold, "identity": identity,
}  # fmt: skip
