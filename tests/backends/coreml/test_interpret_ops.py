"""Every family of kernels on programs that coremltools wrote, against PyTorch and NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as nn

pytest.importorskip("coremltools")
from coreml_packages import results

from backends.coreml.interpret.ops import KERNELS
from backends.coreml.sdk import sdk

RNG = np.random.default_rng(0)
Arrays = Mapping[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def wide(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, np.float64))


def require(
    build: Callable[..., list],
    feeds: Arrays,
    wanted: list,
    path: Path,
    target: str = "iOS17",
    atol: float = 2e-6,
) -> None:
    """All results of a program, each with its shape."""
    got = results(lambda mb, *values: tuple(build(mb, *values)), feeds, path / "p.mlpackage", target=target)
    assert len(got) == len(wanted)
    for index, (have, want) in enumerate(zip(got, wanted, strict=True)):
        want = np.asarray(want)
        assert have.shape == want.shape, index
        np.testing.assert_allclose(
            have, want, atol=atol * max(1, np.abs(want).max(initial=0)), err_msg=str(index)
        )


def test_unary(tmp_path: Path) -> None:
    x = normal(2, 3, 4) * 2
    near, above = np.clip(x / 4, -0.9, 0.9), np.abs(x) + 0.1
    plain = {
        "abs": np.abs, "ceil": np.ceil, "cos": np.cos, "exp": np.exp, "exp2": np.exp2, "floor": np.floor,
        "round": np.round, "sign": np.sign, "sin": np.sin, "square": np.square, "tanh": np.tanh,
        "cosh": np.cosh,
        "sinh": np.sinh, "erf": lambda v: torch.erf(wide(v)).numpy(), "atan": np.arctan,
    }  # fmt: skip
    inside = {"acos": np.arccos, "asin": np.arcsin, "atanh": np.arctanh, "tan": np.tan}
    big, little, much = (a.astype(np.float64) for a in (x, near, above))

    def build(mb, x, near, above):
        found = [getattr(mb, name)(x=x) for name in plain] + [getattr(mb, name)(x=near) for name in inside]
        found += [mb.sqrt(x=above), mb.log(x=above, epsilon=0.5), mb.rsqrt(x=above, epsilon=0.25)]
        found += [mb.inverse(x=above, epsilon=0.5), mb.clip(x=x, alpha=-0.5, beta=1.0)]
        found += [mb.threshold(x=x, alpha=0.3), mb.cast(x=x, dtype="int32"), mb.identity(x=x)]
        return found

    wanted = [f(big) for f in plain.values()] + [f(little) for f in inside.values()]
    wanted += [np.sqrt(much), np.log(much + 0.5), 1 / np.sqrt(much + 0.25), 1 / (much + 0.5)]
    wanted += [np.clip(big, -0.5, 1), np.maximum(big, 0.3), np.trunc(big), big]
    require(build, {"x": x, "near": near, "above": above}, wanted, tmp_path)


def test_binary(tmp_path: Path) -> None:
    x, y = normal(2, 3, 4), normal(3, 1) + 2
    i, j = RNG.integers(-9, 9, (5,)).astype(np.int32), np.array([2, -3, 4, 5, -2], np.int32)
    plain = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "real_div": np.divide, "maximum": np.maximum,
        "minimum": np.minimum, "floor_div": np.floor_divide, "mod": np.mod,
    }  # fmt: skip
    compared = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]
    whole = ["add", "mul", "floor_div", "mod", "maximum"]

    def build(mb, x, y, i, j):
        found = [getattr(mb, name)(x=x, y=y) for name in plain] + [mb.pow(x=mb.abs(x=x), y=y)]
        found += [mb.cast(x=getattr(mb, name)(x=x, y=y), dtype="fp32") for name in compared]
        both = mb.greater(x=x, y=0.0), mb.greater(x=y, y=2.0)
        logic = [getattr(mb, f"logical_{name}")(x=both[0], y=both[1]) for name in ("and", "or", "xor")]
        found += [mb.cast(x=one, dtype="int32") for one in [*logic, mb.logical_not(x=both[0])]]
        found += [mb.select(cond=both[0], a=x, b=y)]
        return found + [getattr(mb, name)(x=i, y=j) for name in whole]

    a, b = x.astype(np.float64), y.astype(np.float64)
    wanted = [f(a, b) for f in plain.values()] + [np.abs(a) ** b]
    wanted += [getattr(np, name)(x, y).astype(np.float32) for name in compared]
    p, q = x > 0, y > 2
    wanted += [v.astype(np.int32) for v in (p & q, p | q, p ^ q, ~p)]
    wanted += [np.where(p, a, b)]
    wanted += [f(i, j) for f in (np.add, np.multiply, np.floor_divide, np.mod, np.maximum)]
    require(build, {"x": x, "y": y, "i": i, "j": j}, wanted, tmp_path)


def test_activations(tmp_path: Path) -> None:
    x, alpha = normal(2, 4, 3, 5) * 3, np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    t = wide(x)

    def build(mb, x):
        gelus = [mb.gelu(x=x, mode=m) for m in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")]
        plain = ["relu", "relu6", "sigmoid", "silu", "softplus", "softsign"]
        return [
            *(getattr(mb, name)(x=x) for name in plain), *gelus, mb.leaky_relu(x=x, alpha=0.1),
            mb.elu(x=x, alpha=0.7),
            mb.prelu(x=x, alpha=alpha), mb.clamped_relu(x=x, alpha=0.2, beta=1.5),
            mb.linear_activation(x=x, alpha=2.0, beta=0.5), mb.scaled_tanh(x=x, alpha=1.5, beta=0.5),
            mb.sigmoid_hard(x=x, alpha=0.2, beta=0.5), mb.softplus_parametric(x=x, alpha=alpha, beta=alpha),
            mb.thresholded_relu(x=x, alpha=1.0), mb.softmax(x=x, axis=1), mb.softmax(x=x),
        ]  # fmt: skip

    slope = wide(alpha)[:, None, None]
    wanted = [
        nn.relu(t), nn.relu6(t), t.sigmoid(), nn.silu(t), nn.softplus(t), nn.softsign(t), nn.gelu(t),
        nn.gelu(t, approximate="tanh"), t * (1.702 * t).sigmoid(), nn.leaky_relu(t, 0.1), nn.elu(t, 0.7),
        nn.prelu(t, wide(alpha)), nn.leaky_relu(t, 0.2).clamp(max=1.5), 2 * t + 0.5, 1.5 * (t / 2).tanh(),
        (0.2 * t + 0.5).clamp(0, 1), slope * nn.softplus(t * slope, threshold=100), nn.threshold(t, 1, 0),
        t.softmax(1), t.softmax(-1),
    ]  # fmt: skip
    require(build, {"x": x}, wanted, tmp_path)


def test_convolutions(tmp_path: Path) -> None:
    x, line, room = normal(2, 4, 9, 8), normal(2, 4, 11), normal(1, 2, 5, 6, 4)
    k, d, g, p = normal(6, 4, 3, 2), normal(8, 1, 3, 3), normal(6, 2, 3, 3), normal(5, 4, 1, 1)
    k1, k3, t, tg = normal(3, 4, 3), normal(3, 2, 2, 3, 2), normal(4, 3, 3, 2), normal(4, 3, 3, 3)
    b = normal(6)

    def build(mb, x, line, room):
        custom = {"pad_type": "custom"}
        return [
            mb.conv(x=x, weight=k, bias=b, strides=[2, 1], dilations=[1, 2], pad=[1, 0, 2, 1], **custom),
            mb.conv(x=x, weight=d, groups=4, pad_type="same", strides=[2, 2]),
            mb.conv(x=x, weight=d, groups=4, pad_type="same_lower", strides=[2, 2]),
            mb.conv(x=x, weight=g, groups=2, pad=[1, 1, 1, 1], **custom),
            mb.conv(x=x, weight=p, strides=[2, 3]), mb.conv(x=line, weight=k1, strides=[2]),
            mb.conv(x=room, weight=k3), mb.conv_transpose(x=x, weight=t, strides=[2, 3], dilations=[1, 2]),
            mb.conv_transpose(x=x, weight=tg, groups=2, strides=[2, 2], pad=[1, 1, 1, 1], **custom),
            mb.conv_transpose(x=x, weight=t, strides=[2, 2], pad_type="same"),
        ]  # fmt: skip

    w, v, r = wide(x), wide(line), wide(room)
    wanted = [
        nn.conv2d(nn.pad(w, (2, 1, 1, 0)), wide(k), wide(b), (2, 1), dilation=(1, 2)),
        nn.conv2d(nn.pad(w, (0, 1, 1, 1)), wide(d), stride=2, groups=4),
        nn.conv2d(nn.pad(w, (1, 0, 1, 1)), wide(d), stride=2, groups=4),
        nn.conv2d(w, wide(g), padding=1, groups=2), nn.conv2d(w, wide(p), stride=(2, 3)),
        nn.conv1d(v, wide(k1), stride=2), nn.conv3d(r, wide(k3)),
        nn.conv_transpose2d(w, wide(t), stride=(2, 3), dilation=(1, 2)),
        nn.conv_transpose2d(w, wide(tg), stride=2, padding=1, groups=2),
        nn.conv_transpose2d(w, wide(t), stride=2)[:, :, :18, :16],
    ]  # fmt: skip
    require(build, {"x": x, "line": line, "room": room}, wanted, tmp_path)


def test_depthwise_convolutions_without_strides(tmp_path: Path) -> None:
    """Several results of a channel, dilations, uneven padding, along one and three axes."""
    x, line, room = normal(2, 4, 7, 5), normal(2, 3, 9), normal(1, 2, 4, 3, 5)
    d, k1, k3 = normal(8, 1, 3, 2), normal(3, 1, 4), normal(4, 1, 2, 3, 2)
    custom = {"pad_type": "custom"}

    def build(mb, x, line, room):
        return [
            mb.conv(x=x, weight=d, groups=4, dilations=[2, 3], pad=[1, 2, 3, 0], **custom),
            mb.conv(x=x, weight=d[:4], groups=4, pad_type="valid"),
            mb.conv(x=line, weight=k1, groups=3, pad=[0, 2], **custom),
            mb.conv(x=room, weight=k3, groups=2, pad_type="same"),
        ]

    w, v, r = wide(x), wide(line), wide(room)
    wanted = [
        nn.conv2d(nn.pad(w, (3, 0, 1, 2)), wide(d), dilation=(2, 3), groups=4),
        nn.conv2d(w, wide(d[:4]), groups=4), nn.conv1d(nn.pad(v, (0, 2)), wide(k1), groups=3),
        nn.conv3d(nn.pad(r, (0, 1, 1, 1, 0, 1)), wide(k3), groups=2),
    ]  # fmt: skip
    require(build, {"x": x, "line": line, "room": room}, wanted, tmp_path)


def test_pooling(tmp_path: Path) -> None:
    x, line, room = normal(2, 3, 9, 8), normal(1, 3, 10), normal(1, 2, 5, 6, 4)

    def build(mb, x, line, room):
        around = {"pad_type": "custom", "pad": [1, 1, 0, 0]}
        even = {"kernel_sizes": [3, 2], "strides": [2, 2], "pad_type": "custom", "pad": [1, 1, 1, 1]}
        return [
            mb.max_pool(x=x, kernel_sizes=[3, 2], strides=[2, 1], **around),
            mb.avg_pool(x=x, kernel_sizes=[3, 2], strides=[2, 1], **around),
            mb.avg_pool(x=x, kernel_sizes=[3, 2], exclude_padding_from_average=True, **around),
            mb.max_pool(x=x, ceil_mode=True, **even), mb.avg_pool(x=x, ceil_mode=True, **even),
            mb.avg_pool(x=x, ceil_mode=True, exclude_padding_from_average=True, **even),
            mb.avg_pool(x=x, kernel_sizes=[9, 8], pad_type="valid"),
            mb.l2_pool(x=line, kernel_sizes=[3], strides=[2], pad_type="valid"),
            mb.max_pool(x=room, kernel_sizes=[2, 3, 2], strides=[2, 1, 2], pad_type="valid"),
            mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="same"),
        ]  # fmt: skip

    w, v, r = wide(x), wide(line), wide(room)
    even = {"kernel_size": (3, 2), "stride": 2, "padding": 1, "ceil_mode": True}
    wanted = [
        nn.max_pool2d(w, (3, 2), (2, 1), (1, 0)), nn.avg_pool2d(w, (3, 2), (2, 1), (1, 0)),
        nn.avg_pool2d(w, (3, 2), 1, (1, 0), count_include_pad=False), nn.max_pool2d(w, **even),
        nn.avg_pool2d(w, **even), nn.avg_pool2d(w, **even, count_include_pad=False),
        w.mean((2, 3), keepdim=True),
        nn.avg_pool1d(v * v, 3, 2).mul(3).sqrt(), nn.max_pool3d(r, (2, 3, 2), (2, 1, 2)),
        nn.max_pool2d(nn.pad(w, (0, 0, 0, 1), value=-torch.inf), 2),
    ]  # fmt: skip
    require(build, {"x": x, "line": line, "room": room}, wanted, tmp_path)


def test_products(tmp_path: Path) -> None:
    x, y, q = normal(2, 3, 4, 5), normal(3, 5, 6), normal(2, 3, 4, 5)
    w, b, mask = normal(7, 5), normal(7), normal(4, 4)
    e = normal(2, 5, 4, 3)

    def build(mb, x, y, q, e):
        return [
            mb.matmul(x=x, y=y), mb.matmul(x=q, y=x, transpose_y=True), mb.matmul(x=q, y=x, transpose_x=True),
            mb.linear(x=x, weight=w, bias=b), mb.linear(x=x, weight=w),
            mb.einsum(values=(x, e), equation="nchw,nwhu->nchu"),
        ]  # fmt: skip

    a, c = wide(x), wide(q)
    wanted = [
        a @ wide(y), c @ a.mT, c.mT @ a, nn.linear(a, wide(w), wide(b)), nn.linear(a, wide(w)),
        torch.einsum("nchw,nwhu->nchu", a, wide(e)),
    ]  # fmt: skip
    require(build, {"x": x, "y": y, "q": q, "e": e}, wanted, tmp_path)

    def attend(mb, x, q):
        attention = mb.scaled_dot_product_attention
        causal = np.tril(np.ones((4, 4), np.bool_))
        return [
            attention(query=q, key=x, value=x), attention(query=q, key=x, value=x, attn_mask=mask),
            attention(query=q, key=x, value=x, attn_mask=causal),
        ]  # fmt: skip

    product = nn.scaled_dot_product_attention
    wanted = [product(c, a, a), product(c, a, a, wide(mask)), product(c, a, a, is_causal=True)]
    require(attend, {"x": x, "q": q}, wanted, tmp_path / "18", "iOS18")


def test_normalisations(tmp_path: Path) -> None:
    x = normal(2, 4, 5, 6)
    mean, gamma, beta = normal(4), normal(4), normal(4)
    variance, g2, b2 = np.abs(normal(4)) + 0.5, normal(5, 6), normal(5, 6)

    def build(mb, x):
        both = {"gamma": gamma, "beta": beta}
        return [
            mb.batch_norm(x=x, mean=mean, variance=variance, epsilon=1e-3, **both),
            mb.batch_norm(x=x, mean=mean, variance=variance), mb.instance_norm(x=x, epsilon=1e-3, **both),
            mb.layer_norm(x=x, axes=[2, 3], gamma=g2, beta=b2, epsilon=1e-3), mb.layer_norm(x=x, axes=[-1]),
            mb.l2_norm(x=x, epsilon=1e-3), mb.local_response_norm(x=x, size=3, alpha=0.1, beta=0.6, k=1.5),
        ]  # fmt: skip

    t = wide(x)
    stats = wide(mean), wide(variance)
    wanted = [
        nn.batch_norm(t, *stats, wide(gamma), wide(beta), eps=1e-3), nn.batch_norm(t, *stats),
        nn.instance_norm(t, weight=wide(gamma), bias=wide(beta), eps=1e-3),
        nn.layer_norm(t, (5, 6), wide(g2), wide(b2), 1e-3), nn.layer_norm(t, (6,)),
        t / (t.square().sum((1, 2, 3), keepdim=True) + 1e-3).sqrt(),
        nn.local_response_norm(t, 3, 0.1, 0.6, 1.5),
    ]  # fmt: skip
    require(build, {"x": x}, wanted, tmp_path)


def test_reductions(tmp_path: Path) -> None:
    x = normal(3, 4, 5)
    tied = np.array([[3, 1, 3, 2], [0, 0, -1, 0]], np.float32)
    names = ["sum", "mean", "max", "min", "prod", "l1_norm", "l2_norm", "sum_square", "log_sum_exp"]

    def build(mb, x, tied):
        found = [getattr(mb, f"reduce_{name}")(x=x, axes=[0, -1]) for name in names]
        found += [getattr(mb, f"reduce_{name}")(x=x, axes=[1], keep_dims=True) for name in names]
        found += [mb.reduce_log_sum(x=mb.abs(x=x), axes=[1])]
        found += [mb.reduce_argmax(x=x, axis=1), mb.reduce_argmin(x=x, axis=-1, keep_dims=True)]
        found += [mb.cumsum(x=x, axis=1), mb.cumsum(x=x, axis=2, exclusive=True, reverse=True)]
        found += [mb.argsort(x=tied, ascending=True), mb.argsort(x=tied)]
        found += [*mb.topk(x=tied, k=3), *mb.topk(x=x, k=2, axis=1, ascending=True)]
        return found

    t = wide(x)

    def reduced(axes: tuple[int, ...], keep: bool) -> list[torch.Tensor]:
        product = t
        for axis in sorted((a % 3 for a in axes), reverse=True):
            product = product.prod(axis, keepdim=keep)
        return [
            t.sum(axes, keep), t.mean(axes, keep), t.amax(axes, keep), t.amin(axes, keep), product,
            t.abs().sum(axes, keep), t.norm(dim=axes, keepdim=keep), t.square().sum(axes, keep),
            t.logsumexp(axes, keep),
        ]  # fmt: skip

    order = [[1, 3, 0, 2], [2, 0, 1, 3]], [[0, 2, 3, 1], [0, 1, 3, 2]]
    least = t.sort(1)
    wanted = [
        *reduced((0, -1), False), *reduced((1,), True), t.abs().sum(1).log(), t.argmax(1), t.argmin(-1, True),
        t.cumsum(1), t.flip(2).cumsum(2).flip(2) - t, *order,
        [[3, 3, 2], [0, 0, 0]], np.array(order[1])[:, :3], least[0][:, :2], least[1][:, :2],
    ]  # fmt: skip
    require(build, {"x": x, "tied": tied}, wanted, tmp_path)


def test_every_operation_of_coremltools_is_evaluated() -> None:
    """But for chance, and one that coremltools calls experimental."""
    sdk()
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    without_kernel = {"const", "_const_symbolic", "cond", "while_loop", "classify", "read_state"}
    refused = {name for name in SSAOpRegistry.core_ops if name.startswith("random_")} | {"conv_quantized"}
    assert set(SSAOpRegistry.core_ops) - set(KERNELS) == without_kernel | refused
