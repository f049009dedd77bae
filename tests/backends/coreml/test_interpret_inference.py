"""Kernels against what coremltools infers of operations on constants, on drawn shapes and parameters."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("coremltools")

from backends.coreml.interpret.call import Call, Fixed
from backends.coreml.interpret.ops import KERNELS
from backends.coreml.sdk import builder, mil, quiet, sdk

DRAWS = 4
Given = dict[str, object]


class Draw:
    """Shapes, numbers and parameters by chance, the same ones each time."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def chance(self, part: float) -> bool:
        return bool(self.rng.random() < part)

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def shape(self, least: int = 1, most: int = 4) -> list[int]:
        return [self.number(1, 6) for _ in range(self.number(least, most + 1))]

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.normal(0, 2, shape).astype(np.float32)

    def either(self, *shape: int) -> np.ndarray:
        """Floats or integers."""
        return self.floats(*shape) if self.chance(0.6) else self.rng.integers(-9, 9, shape).astype(np.int32)

    def axis(self, shape: list[int], at: int | None = None) -> np.int32:
        """One of the axes, maybe counted from the end."""
        at = self.number(0, len(shape)) if at is None else at
        return np.int32(at - len(shape) if self.chance(0.4) else at)

    def axes(self, shape: list[int]) -> np.ndarray:
        some = self.rng.permutation(len(shape))[: self.number(1, len(shape) + 1)]
        return np.array([self.axis(shape, int(at)) for at in some], np.int32)


def binary(draw: Draw) -> Given:
    shape = draw.shape()
    x = draw.either(*shape)
    other = [n if draw.chance(0.7) else 1 for n in shape][draw.number(0, len(shape)) :]
    y = draw.floats(*other) if x.dtype == np.float32 else draw.rng.integers(-9, 9, other).astype(np.int32)
    return {"x": x, "y": np.where(y == 0, 3, y).astype(y.dtype)}


def power(draw: Draw) -> Given:
    x = np.abs(draw.either(*draw.shape())) + 1
    y = np.int32(draw.number(0, 4)) if x.dtype == np.int32 else np.float32(draw.number(-3, 4))
    return {"x": x, "y": y}


def positive(draw: Draw) -> Given:
    return {"x": np.abs(draw.floats(*draw.shape())) + np.float32(0.1)}


def floats(draw: Draw) -> Given:
    return {"x": draw.floats(*draw.shape())}


def whole(draw: Draw) -> Given:
    return {"x": draw.either(*draw.shape())}


def halves(draw: Draw) -> Given:
    """Half of them lie half-way."""
    return {"x": (draw.rng.integers(-9, 9, draw.shape()) / 2).astype(np.float32)}


def shaped(**parameters: float) -> Callable[[Draw], Given]:
    return lambda draw: {**positive(draw), **{n: np.float32(v) for n, v in parameters.items()}}


def by_parameters(**parameters: float) -> Callable[[Draw], Given]:
    return lambda draw: {**floats(draw), **{n: np.float32(v) for n, v in parameters.items()}}


def per_channel(*names: str) -> Callable[[Draw], Given]:
    def drawn(draw: Draw) -> Given:
        shape = draw.shape(4, 4)
        return {"x": draw.floats(*shape), **{name: draw.floats(shape[1]) for name in names}}

    return drawn


def reduced(draw: Draw) -> Given:
    shape = draw.shape()
    x = draw.either(*shape)
    axes = {"axes": draw.axes(shape)} if draw.chance(0.8) else {}
    return {"x": np.abs(x) + x.dtype.type(1), "keep_dims": draw.chance(0.5), **axes}


def along(**chances: float) -> Callable[[Draw], Given]:
    def drawn(draw: Draw) -> Given:
        shape = draw.shape()
        flags = {name: draw.chance(part) for name, part in chances.items()}
        return {"x": draw.floats(*shape), "axis": draw.axis(shape), **flags}

    return drawn


def top(draw: Draw) -> Given:
    shape = draw.shape()
    at = draw.number(0, len(shape))
    count = np.int32(draw.number(1, shape[at] + 1))
    return {
        "x": draw.floats(*shape), "axis": draw.axis(shape, at), "k": count, "ascending": draw.chance(0.5),
    }  # fmt: skip


def sliced(draw: Draw) -> Given:
    shape = [draw.number(1, 8) for _ in range(draw.number(1, 4))]
    columns: list[tuple[int, int, int, bool, bool, bool]] = []
    for size in shape:
        low, high = sorted(int(n) for n in draw.rng.integers(0, size + 1, 2))
        low, high = (0, size) if low == high else (low, high)
        step = int(draw.rng.choice([1, 1, 2, 3, -1, -2]))
        begin, end = (low, high) if step > 0 else (high - 1, low - 1)
        alone, whole_begin = draw.chance(0.2), draw.chance(0.3)
        begin = draw.number(-size, size) if alone else begin - size if draw.chance(0.3) else begin
        columns.append((begin, end, step, whole_begin and not alone, draw.chance(0.3) or end < 0, alone))
    names = ("begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask")
    types = (np.int32, np.int32, np.int32, np.bool_, np.bool_, np.bool_)
    rows = zip(names, zip(*columns, strict=True), types, strict=True)
    return {"x": draw.floats(*shape), **{name: np.array(row, kind) for name, row, kind in rows}}


def reshaped(draw: Draw) -> Given:
    """Zeros that keep a size, counted from the last one, and what is left."""
    shape = draw.shape(2)
    wanted = [0 if draw.chance(0.3) else n for n in shape]
    if draw.chance(0.5):
        wanted[draw.number(0, len(wanted))] = -1
    return {"x": draw.floats(*shape), "shape": np.array([1] * draw.chance(0.3) + wanted, np.int32)}


def expanded(draw: Draw) -> Given:
    shape, more = draw.shape(), draw.number(1, 3)
    places = draw.rng.permutation(len(shape) + more)[:more]
    rank = len(shape) + more
    return {
        "x": draw.floats(*shape),
        "axes": np.array([at - rank if draw.chance(0.4) else at for at in places], np.int32),
    }


def turned(draw: Draw) -> Given:
    shape = draw.shape()
    return {
        "x": draw.floats(*shape),
        "perm": np.array([draw.axis(shape, int(at)) for at in draw.rng.permutation(len(shape))]),
    }


def padded(draw: Draw) -> Given:
    shape = [n + 2 for n in draw.shape(1, 3)]
    pads = draw.rng.integers(0, 3, 2 * draw.number(1, len(shape) + 1)).astype(np.int32)
    mode = str(draw.rng.choice(["constant", "reflect", "replicate"]))
    return {"x": draw.floats(*shape), "pad": pads, "mode": mode, "constant_val": np.float32(1.5)}


def gathered(draw: Draw) -> Given:
    shape = draw.shape(1, 3)
    at = draw.number(0, len(shape))
    batch = draw.number(0, at + 1)
    places = draw.rng.integers(0, shape[at], shape[:batch] + draw.shape(1, 2)).astype(np.int32)
    return {
        "x": draw.floats(*shape), "indices": places, "axis": np.int32(at), "batch_dims": np.int32(batch),
        "validate_indices": False,
    }  # fmt: skip


def picked(draw: Draw) -> Given:
    shape = draw.shape(1, 3)
    at = draw.number(0, len(shape))
    wanted = [draw.number(1, 6) if axis == at else size for axis, size in enumerate(shape)]
    places = draw.rng.integers(0, shape[at], wanted).astype(np.int32)
    return {
        "x": draw.floats(*shape), "indices": places, "axis": draw.axis(shape, at), "validate_indices": False,
    }  # fmt: skip


def multiplied(draw: Draw) -> Given:
    a, b, c = (draw.number(1, 6) for _ in range(3))
    lead = draw.shape(1, 2)
    x, y = draw.floats(*lead, a, b), draw.floats(*[n if draw.chance(0.7) else 1 for n in lead], b, c)
    first, second = draw.chance(0.5), draw.chance(0.5)
    return {
        "x": x.swapaxes(-1, -2).copy() if first else x, "y": y.swapaxes(-1, -2).copy() if second else y,
        "transpose_x": first, "transpose_y": second,
    }  # fmt: skip


def layer(draw: Draw) -> Given:
    shape = draw.shape(2)
    at = sorted(int(a) for a in draw.rng.permutation(len(shape))[: draw.number(1, len(shape) + 1)])
    inner = [shape[axis] for axis in at]
    return {
        "x": draw.floats(*shape), "axes": np.array([draw.axis(shape, axis) for axis in at]),
        "gamma": draw.floats(*inner), "beta": draw.floats(*inner), "epsilon": np.float32(1e-3),
    }  # fmt: skip


def rounded(draw: Draw) -> Given:
    """One scale, or one for each place of an axis."""
    shape, kind = draw.shape(1, 3), str(draw.rng.choice(["int8", "uint8"]))
    at, several = draw.number(0, len(shape)), draw.chance(0.5)
    count = (shape[at],) if several else ()
    scale = np.asarray(draw.rng.random(count) * 0.1 + 0.01, np.float32)[()]
    zero = {"zero_point": np.asarray(draw.rng.integers(0, 100, count), kind)[()]} if draw.chance(0.7) else {}
    axis = {"axis": draw.axis(shape, at)} if several else {}
    return {"input": draw.floats(*shape), "scale": scale, "output_dtype": kind, **zero, **axis}


def attended(draw: Draw) -> Given:
    n, made, steps, width, depth = (draw.number(1, 5) for _ in range(5))
    mask = draw.rng.random((made, steps)) < 0.7
    mask[:, 0] = True
    masks: list[Given] = [{}, {"attn_mask": mask}, {"attn_mask": draw.floats(made, steps)}]
    return {
        "query": draw.floats(n, 2, made, width), "key": draw.floats(n, 2, steps, width),
        "value": draw.floats(n, 2, steps, depth), **masks[draw.number(0, 3)],
    }  # fmt: skip


def cast(draw: Draw) -> Given:
    return {**whole(draw), "dtype": str(draw.rng.choice(["int32", "fp32", "bool", "fp16"]))}


CASES: dict[str, Callable[[Draw], Given]] = {
    **dict.fromkeys(
        ("add", "sub", "mul", "maximum", "minimum", "equal", "not_equal", "less", "less_equal", "greater",
         "greater_equal", "floor_div", "mod", "real_div"), binary,
    ),
    **dict.fromkeys(("abs", "sign", "square", "exp2"), whole),
    **dict.fromkeys(("ceil", "floor", "round"), halves),
    **dict.fromkeys(
        ("atan", "erf", "exp", "gelu", "relu", "relu6", "sigmoid", "softplus", "softsign", "tanh"), floats,
    ),
    **dict.fromkeys(("inverse", "log", "rsqrt"), shaped(epsilon=0.01)),
    **dict.fromkeys(
        ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l1_norm",
         "reduce_l2_norm", "reduce_sum_square", "reduce_log_sum", "reduce_log_sum_exp"), reduced,
    ),
    **dict.fromkeys(("reduce_argmax", "reduce_argmin"), along(keep_dims=0.5)),
    **dict.fromkeys(("elu", "leaky_relu", "thresholded_relu", "threshold"), by_parameters(alpha=0.3)),
    **dict.fromkeys(
        ("clamped_relu", "clip", "linear_activation", "scaled_tanh", "sigmoid_hard"),
        by_parameters(alpha=0.3, beta=0.8),
    ),
    "pow": power, "sqrt": positive, "prelu": per_channel("alpha"), "argsort": along(ascending=0.5),
    "softplus_parametric": per_channel("alpha", "beta"), "softmax": along(), "topk": top,
    "slice_by_index": sliced, "reshape": reshaped, "expand_dims": expanded, "transpose": turned,
    "pad": padded, "gather": gathered, "gather_along_axis": picked, "matmul": multiplied,
    "layer_norm": layer, "quantize": rounded, "scaled_dot_product_attention": attended, "cast": cast,
}  # fmt: skip


def inferred(name: str, given: Given) -> list[tuple[np.ndarray, str]]:
    """What coremltools makes of an operation on constants, with the types that it gives the results."""
    types = mil().types
    with quiet(), mil().Function({}, opset_version=sdk().target.iOS18):
        made = getattr(builder(), name)(**given)
    results = made if isinstance(made, tuple | list) else (made,)
    return [(np.asarray(one.val), types.builtin_to_string(one.dtype)) for one in results]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_as_coremltools_infers_it(name: str) -> None:
    draw = Draw(zlib.crc32(name.encode()))
    for _ in range(DRAWS):
        given = CASES[name](draw)
        wanted = inferred(name, given)
        operands = {parameter: [np.asarray(value)] for parameter, value in given.items()}
        found = KERNELS[name](Call(name, operands, Fixed({}), [kind for _, kind in wanted]))
        got = found if isinstance(found, tuple) else (found,)
        for have, (want, kind) in zip(got, wanted, strict=True):
            dtype = {"fp32": "float32", "fp16": "float16"}.get(kind, kind)
            np.testing.assert_allclose(
                np.asarray(have).astype(dtype).astype(float),
                want.astype(dtype).astype(float),
                rtol=1e-5,
                atol=1e-5,
                err_msg=f"{ {p: v.shape if isinstance(v, np.ndarray) else v for p, v in given.items()} }",
            )
