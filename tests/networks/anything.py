"""Graphs that nobody would write: a random walk over what can be done to channels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from net import Net

_STEPS = 12


def anything(seed: int) -> ir.Model:
    """A network of a dozen random operations on pictures of 6 by 6, and a head or a convolution behind."""
    rng = np.random.default_rng(seed)
    n = Net(seed)
    pool = [n.conv(n.input("n", 3, 6, 6), int(rng.choice([4, 6, 8, 12])))]
    for _ in range(_STEPS):
        x = pool[rng.integers(max(len(pool) - 4, 0), len(pool))]
        made = _one(n, rng, x, pool)
        pool += [value for value in made if n.c[value] <= 48]
    ends = [pool[-1], *(v for v in pool[:-1] if not v.uses())]
    x = n.concat(*ends) if len(ends) > 1 else ends[0]
    if rng.random() < 0.3:
        return n.model(n.dense(n.op("Flatten", n.relu(n.conv(x, 4))), 5, 4 * 36))
    return n.model(n.head(x) if rng.random() < 0.7 else n.conv(x, 3, 1))


def _one(n: Net, rng: np.random.Generator, x: ir.Value, pool: list[ir.Value]) -> list[ir.Value]:
    c = n.c[x]
    kind = rng.integers(20)
    alike = [v for v in pool if n.c[v] == c and v is not x]
    divisors = [d for d in range(2, c) if c % d == 0]
    if kind < 3:
        return [n.cbr(x, int(rng.choice([4, 6, 8, 12])), int(rng.choice([1, 3])))]
    if kind < 6 and alike:
        return [n.op(str(rng.choice(["Add", "Sub", "Mul", "Max"])), x, alike[rng.integers(len(alike))])]
    if kind == 6 and divisors:
        g = int(rng.choice(divisors))
        return [n.conv(x, g * int(rng.integers(1, 4)), 3, g=g)]
    if kind == 7:
        return [n.conv(x, c * int(rng.integers(1, 3)), 3, g=c)]
    if kind == 8:
        return [n.concat(x, pool[rng.integers(len(pool))])]
    if kind == 9 and c > 2:
        at = int(rng.integers(1, c))
        sizes = n.const([at, c - at])
        a, b = n.ops("Split", x, sizes, count=2, axis=1)
        n.c[a], n.c[b] = at, c - at
        return [a, b]
    if kind == 10 and c > 3:
        start, step = int(rng.integers(0, 2)), int(rng.choice([1, 2, -1, -2]))
        if step < 0:
            return [n.slice(x, [-1 - start], [-100], [1], [step], c=len(range(c)[-1 - start :: step]))]
        return [n.slice(x, [start], [100], [1], [step], c=len(range(c)[start::step]))]
    if kind == 11:
        a, b = (int(i) for i in rng.integers(0, 3, 2))
        return [n.op("Pad", x, n.const([0, a, 0, 0, 0, b, 0, 0]), c=c + a + b)]
    if kind in (12, 13) and divisors:
        g = int(rng.choice(divisors))
        y = n.turn(n.shape(x, -1, g, c // g, 6, 6), 0, 2, 1, 3, 4)
        return [n.shape(y, -1, c, 6, 6, c=c)]
    if kind == 14:
        return [n.se(x, 3)]
    if kind == 15:
        y = n.op("ReduceMean", x, n.const([1]), keepdims=1, c=1)
        return [n.op("Mul", x, n.op("Sigmoid", y), c=c)]
    if kind == 16:
        index = rng.integers(-c, c, int(rng.integers(2, 9)))
        return [n.op("Gather", x, n.const(index), axis=1, c=len(index))]
    if kind == 17 and divisors:
        scale, bias = n.random(c, offset=1.0), n.random(c)
        return [n.op("GroupNormalization", x, scale, bias, num_groups=int(rng.choice(divisors)))]
    if kind == 18:
        y = n.turn(n.shape(x, 0, c, 36), 0, 2, 1)
        y = n.linear(n.norm(y, c), c, int(rng.choice([4, 8])))
        return [n.shape(n.turn(y, 0, 2, 1), 0, n.c[y], 6, 6, c=n.c[y])]
    if kind == 19 and divisors:
        heads = int(rng.choice(divisors))
        y = n.turn(n.shape(x, 0, c, 36), 0, 2, 1)
        y = n.turn(n.attention(y, c, heads, packed=bool(rng.integers(2))), 0, 2, 1)
        return [n.add(x, n.shape(y, 0, c, 6, 6, c=c))]
    return [n.op(str(rng.choice(["Relu", "Tanh", "Sigmoid", "Exp"])), n.bn(x))]
