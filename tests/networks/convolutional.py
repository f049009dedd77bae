"""Small convolutional networks, of every kind that matters to pruning: name -> the function that makes it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from net import Net


def vgg() -> ir.Model:
    """Flatten before a linear layer: one channel is 16 of its inputs."""
    n = Net()
    x = n.input("n", 3, 16, 16)
    x = n.pool(n.relu(n.conv(n.relu(n.conv(x, 8)), 12)))
    x = n.op("Flatten", n.pool(n.relu(n.conv(x, 16))))
    x = n.relu(n.dense(x, 32, 16 * 16))
    return n.model(n.dense(x, 10))


def resnet_projection() -> ir.Model:
    n = Net()
    x = n.pool(n.cbr(n.input("n", 3, 32, 32), 16, 7, 2), k=3, pad=1)
    for mid, out, s in ((8, 32, 1), (8, 32, 1), (16, 48, 2)):
        y = n.cbr(n.cbr(x, mid, 1), mid, 3, s)
        y = n.bn(n.conv(y, out, 1, bias=False))
        short = x if n.c[x] == out and s == 1 else n.bn(n.conv(x, out, 1, s, bias=False))
        x = n.relu(n.add(y, short))
    return n.model(n.head(x))


def resnet_padded() -> ir.Model:
    """CIFAR's: a shortcut without parameters, every second pixel and zeros for new channels."""
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 8)
    for out, s in ((8, 1), (16, 2), (16, 1), (32, 2)):
        y = n.bn(n.conv(n.cbr(x, out, 3, s), out, bias=False))
        if s == 2:
            extra = (out - n.c[x]) // 2
            x = n.slice(x, [0, 0], [2**31, 2**31], [2, 3], [2, 2])
            x = n.op("Pad", x, n.const([0, extra, 0, 0, 0, extra, 0, 0]), c=out)
        x = n.relu(n.add(x, y))
    return n.model(n.head(x))


def resnet_preactivation() -> ir.Model:
    n = Net()
    x = n.conv(n.input("n", 3, 16, 16), 8)
    for out, s in ((8, 1), (16, 2)):
        y = n.relu(n.bn(x))
        short = x if n.c[x] == out else n.conv(y, out, 1, s, bias=False)
        y = n.conv(n.relu(n.bn(n.conv(y, out, 3, s))), out)
        x = n.add(y, short)
    return n.model(n.head(n.relu(n.bn(x))))


def resnext() -> ir.Model:
    """Grouped convolutions: many groups go as units, few groups are cut alike."""
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 16)
    for groups, mid in ((8, 32), (2, 16)):
        y = n.cbr(n.cbr(x, mid, 1), mid, 3, 1, groups)
        x = n.relu(n.add(x, n.bn(n.conv(y, 16, 1))))
    return n.model(n.head(x))


def densenet() -> ir.Model:
    n = Net()
    x = n.conv(n.input("n", 3, 16, 16), 8)
    for layers in (3, 2):
        for _ in range(layers):
            x = n.concat(x, n.conv(n.relu(n.bn(x)), 6, bias=False))
        x = n.pool(n.conv(n.relu(n.bn(x)), n.c[x] // 2, 1), "AveragePool")
    return n.model(n.head(n.relu(n.bn(x))))


def inception() -> ir.Model:
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 12)
    for _ in range(2):
        x = n.concat(
            n.cbr(x, 4, 1), n.cbr(n.cbr(x, 4, 1), 8), n.cbr(n.cbr(n.cbr(x, 4, 1), 4), 4),
            n.cbr(n.pool(x, "AveragePool", 3, 1, 1), 4, 1),
        )  # fmt: skip
    return n.model(n.head(x))


def mobilenet_v1() -> ir.Model:
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 8, 3, 2, act="Relu6")
    for out, s in ((16, 1), (24, 2), (24, 1)):
        x = n.cbr(n.cbr(x, n.c[x], 3, s, n.c[x], act="Relu6"), out, 1, act="Relu6")
    return n.model(n.op("Softmax", n.head(x), axis=-1))


def _inverted(n: Net, x: ir.Value, out: int, s: int, act: str, k: int = 3, se: str = "") -> ir.Value:
    mid = 3 * n.c[x]
    y = n.cbr(n.cbr(x, mid, 1, act=act), mid, k, s, mid, act=act)
    if se:
        y = n.se(y, mid // 4, se)
    y = n.cbr(y, out, 1, act="")
    return n.add(x, y) if s == 1 and n.c[x] == out else y


def mobilenet_v2() -> ir.Model:
    n = Net()
    x = n.cbr(n.input("n", 3, 32, 32), 8, 3, 2, act="Relu6")
    for out, s in ((8, 1), (12, 2), (12, 1)):
        x = _inverted(n, x, out, s, "Relu6")
    return n.model(n.head(n.cbr(x, 32, 1, act="Relu6")))


def mobilenet_v3() -> ir.Model:
    n = Net()
    x = n.cbr(n.input("n", 3, 32, 32), 8, 3, 2, act="HardSwish")
    x = _inverted(n, _inverted(n, x, 8, 1, "Relu", se="HardSigmoid"), 12, 2, "HardSwish", 5, "HardSigmoid")
    x = n.op("GlobalAveragePool", n.cbr(x, 32, 1, act="HardSwish"))
    x = n.op("HardSwish", n.conv(x, 24, 1))
    return n.model(n.dense(n.op("Flatten", x), 10))


def efficientnet() -> ir.Model:
    n = Net()
    x = n.cbr(n.input("n", 3, 32, 32), 8, 3, 2, act="Silu")
    for out, s in ((8, 1), (12, 2), (12, 1)):
        x = _inverted(n, x, out, s, "Silu", 5, "Sigmoid")
    return n.model(n.head(n.cbr(x, 32, 1, act="Silu")))


def ghostnet() -> ir.Model:
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 8)
    for out in (16, 16):
        first = n.cbr(x, out // 2, 1)
        y = n.concat(first, n.cbr(first, out // 2, 3, 1, out // 2))
        x = n.add(x, y) if n.c[x] == out else y
    return n.model(n.head(x))


def _shuffle(n: Net, x: ir.Value, groups: int, side: int) -> ir.Value:
    c = n.c[x]
    y = n.turn(n.shape(x, -1, groups, c // groups, side, side), 0, 2, 1, 3, 4)
    return n.shape(y, -1, c, side, side, c=c)


def shufflenet_v1() -> ir.Model:
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 12)
    for _ in range(2):
        y = _shuffle(n, n.cbr(x, 12, 1, g=3), 3, 16)
        y = n.bn(n.conv(n.bn(n.conv(y, 12, 3, g=12, bias=False)), 12, 1, g=3, bias=False))
        x = n.relu(n.add(x, y))
    return n.model(n.head(x))


def shufflenet_v2() -> ir.Model:
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 16)
    for _ in range(2):
        left, right = n.ops("Split", x, n.const([8, 8]), count=2, axis=1, c=8)
        right = n.cbr(n.bn(n.conv(n.cbr(right, 8, 1), 8, 3, g=8, bias=False)), 8, 1)
        x = _shuffle(n, n.concat(left, right), 2, 16)
    return n.model(n.head(n.cbr(x, 24, 1)))


def repvgg() -> ir.Model:
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 12, 3, 2)
    for _ in range(2):
        paths = n.bn(n.conv(x, 12, bias=False)), n.bn(n.conv(x, 12, 1, bias=False)), n.bn(x)
        x = n.relu(n.op("Sum", *paths))
    return n.model(n.head(n.cbr(x, 24, 3, 2)))


def squeezenet() -> ir.Model:
    n = Net()
    x = n.pool(n.relu(n.conv(n.input("n", 3, 32, 32), 12, 3, 2)))
    for _ in range(2):
        s = n.relu(n.conv(x, 4, 1))
        x = n.concat(n.relu(n.conv(s, 8, 1)), n.relu(n.conv(s, 8)))
    x = n.op("GlobalAveragePool", n.relu(n.conv(x, 10, 1)))
    return n.model(n.op("Softmax", n.op("Flatten", x), axis=1))


def unet() -> ir.Model:
    n = Net()
    a = n.cbr(n.input("n", 3, 16, 16), 8)
    b = n.cbr(n.pool(a), 12)
    c = n.cbr(n.pool(b), 16)
    up = n.op("ConvTranspose", c, n.random(16, 12, 2, 2, scale=0.2), n.random(12), strides=[2, 2], c=12)
    b = n.cbr(n.concat(up, b), 12)
    up = n.op("ConvTranspose", b, n.random(12, 2, 2, 2, scale=0.2), n.random(8), strides=[2, 2], group=4, c=8)
    return n.model(n.op("Sigmoid", n.conv(n.cbr(n.concat(up, a), 8), 1, 1)))


def unet_free_size() -> ir.Model:
    """Sizes are read from the graph's own shapes, the number of channels with them."""
    n = Net()
    a = n.cbr(n.input("n", 3, "h", "w"), 8)
    b = n.cbr(n.pool(a), 12)
    first = n.slice(n.op("Shape", b, c=0), [0], [2], [0])
    last = n.slice(n.op("Shape", a, c=0), [2], [4], [0])
    up = n.op("Resize", b, None, None, n.op("Concat", first, last, axis=0, c=0), mode="nearest", c=12)
    return n.model(n.conv(n.cbr(n.concat(up, a), 8), 2, 1))


def hourglass() -> ir.Model:
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 8)
    low = n.cbr(n.cbr(n.pool(x), 12), 8)
    scales = n.const(np.array([1, 1, 2, 2], np.float32))
    x = n.add(n.cbr(x, 8), n.op("Resize", low, None, scales, mode="nearest", c=8))
    return n.model(n.conv(n.cbr(x, 8), 5, 1))


def aspp() -> ir.Model:
    """Dilated convolutions side by side, and a picture's mean beside them."""
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 12, 3, 2)
    mean = n.relu(n.conv(n.op("GlobalAveragePool", x), 6, 1))
    mean = n.op("Expand", mean, n.const([1, 6, 8, 8]))
    x = n.concat(n.cbr(x, 6, 1), n.cbr(x, 6, d=2), n.cbr(x, 6, d=4), mean)
    return n.model(n.conv(n.cbr(x, 12, 1), 4, 1))


def super_resolution() -> ir.Model:
    n = Net()
    x = n.op("Tanh", n.conv(n.input("n", 1, 12, 12), 16, 5))
    x = n.op("PRelu", n.conv(x, 12), n.random(12, 1, 1, scale=0.2))
    x = n.op("DepthToSpace", n.conv(x, 24), blocksize=2, c=6)
    return n.model(n.conv(x, 1))


def pixel_shuffle() -> ir.Model:
    """Channels into pixels as torch does it: by the operator, and written out; a gate of the last axes."""
    n = Net()
    x = n.relu(n.conv(n.input("n", 3, 6, 6), 16))
    x = n.op("DepthToSpace", n.conv(x, 24), blocksize=2, mode="CRD", c=6)
    y = n.shape(n.conv(x, 20), 0, 5, 2, 2, 12, 12)
    y = n.shape(n.turn(y, 0, 1, 4, 2, 5, 3), 0, 5, 24, 24, c=5)
    gate = n.op("Expand", n.random(1, 5, 1, 1), n.const([5, 1, 24]), c=5)
    return n.model(n.conv(n.op("Mul", y, gate), 3))


def detector() -> ir.Model:
    """Three levels, one head for all of them, boxes side by side."""
    n = Net()
    x = n.cbr(n.input("n", 3, 32, 32), 8, 3, 2, act="Silu")
    c3 = n.cbr(x, 12, 3, 2, act="Silu")
    c4 = n.cbr(c3, 16, 3, 2, act="Silu")
    p4 = n.conv(c4, 8, 1)
    up = n.op("Resize", p4, None, n.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest", c=8)
    p3 = n.add(n.conv(c3, 8, 1), up)
    tower, bias, last = n.random(8, 8, 3, 3, scale=0.1), n.random(8), n.random(14, 8, 1, 1, scale=0.3)
    boxes = []
    for level in (p3, p4):
        y = n.relu(n.op("Conv", level, tower, bias, kernel_shape=[3, 3], pads=[1] * 4))
        y = n.turn(n.shape(n.op("Conv", y, last), 0, 2, 7, -1), 0, 3, 1, 2)
        boxes.append(n.shape(y, 0, -1, 7))
    y = n.op("Sigmoid", n.op("Concat", *boxes, axis=1, c=0))
    return n.model(y)


def csp_darknet() -> ir.Model:
    """Pixels into channels by slices, halves that are split and put together again."""
    n = Net()
    x = n.input("n", 3, 16, 16)
    parts = [n.slice(x, [i, j], [16, 16], [2, 3], [2, 2], c=3) for i in (0, 1) for j in (0, 1)]
    x = n.cbr(n.concat(*parts), 16, act="Silu")
    a, b = n.ops("Split", x, count=2, axis=1, num_outputs=2, c=8)
    y = n.add(b, n.cbr(n.cbr(b, 8, act="Silu"), 8, act="Silu"))
    x = n.cbr(n.concat(a, b, y), 16, 1, act="Silu")
    x = n.op("SpaceToDepth", x, blocksize=2, c=64)
    return n.model(n.head(n.cbr(x, 16, 1)))


def channel_attention() -> ir.Model:
    """A mean over channels gates pixels: it must not change with their number."""
    n = Net()
    x = n.cbr(n.input("n", 3, 16, 16), 12)
    mean = n.op("ReduceMean", x, n.const([1]), keepdims=1, c=1)
    x = n.op("Mul", x, n.op("Sigmoid", n.conv(mean, 1, 7)), c=12)
    total = n.op("ReduceMean", n.op("Mul", x, x), n.const([1, 2, 3]), keepdims=1, c=1)
    x = n.op("Div", x, n.op("Add", total, n.const(np.float32(0.1))), c=12)
    return n.model(n.head(x))


def strided_slices() -> ir.Model:
    """Every second channel, channels counted down, channels by number."""
    n = Net()
    x = n.cbr(n.input("n", 3, 8, 8), 16)
    y = n.slice(x, [0], [16], [1], [2], c=8)
    z = n.slice(x, [15, 0], [-17, 6], [1, 2], [-2, 1], c=8)
    z = n.op("Pad", z, n.const([0, 0, 2, 0, 0, 0, 0, 0]))
    w = n.op("Gather", x, n.const([3, 1, 4, 1, 5, -1, 2, 6]), axis=1, c=8)
    return n.model(n.head(n.concat(n.cbr(y, 4), n.cbr(z, 4), n.cbr(w, 4))))


def group_normalised() -> ir.Model:
    """The operator, and the spelling of exporters."""
    n = Net()
    x = n.conv(n.input("n", 3, 8, 8), 12)
    x = n.relu(n.op("GroupNormalization", x, n.random(12, offset=1.0), n.random(12), num_groups=3))
    x = n.conv(x, 16)
    y = n.op("InstanceNormalization", n.shape(x, 0, 4, -1), n.const(np.ones(4)), n.const(np.zeros(4)))
    y = n.op("Reshape", y, n.op("Shape", x, c=0), c=16)
    y = n.op("Add", n.op("Mul", y, n.random(16, 1, 1, offset=1.0)), n.random(16, 1, 1))
    return n.model(n.head(n.relu(y)))


def video() -> ir.Model:
    n = Net()
    x = n.relu(n.conv(n.input("n", 3, 4, 8, 8), 8, nd=3))
    x = n.relu(n.conv(x, 12, s=2, nd=3))
    return n.model(n.head(x))


CONVOLUTIONAL = {
    f.__name__: f
    for f in (
        vgg, resnet_projection, resnet_padded, resnet_preactivation, resnext, densenet, inception,
        mobilenet_v1, mobilenet_v2, mobilenet_v3, efficientnet, ghostnet, shufflenet_v1, shufflenet_v2,
        repvgg, squeezenet, unet, unet_free_size, hourglass, aspp, super_resolution, pixel_shuffle, detector,
        csp_darknet, channel_attention, strided_slices, group_normalised, video,
    )
}  # fmt: skip
