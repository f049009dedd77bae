"""Orders of channels: the function stays, more is kept, and nothing turns that is not free."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from deploy.compress.permute import Free, Search, arrange, given_away, permute, turned
from deploy.graph.pattern import mask_2_4

SHORT = Search(exchanges=2, shakes=2)


def shuffled(model):
    """Every family of channels in a random order, and the labels that moved."""
    free = Free.of(model)
    draw = np.random.default_rng(3)
    moves = {}
    for number in sorted(set(free.family.values())):
        labels = [label for label, of in free.family.items() if of == number]
        moves |= dict(zip(labels, map(int, draw.permutation(labels)), strict=True))
    return turned(model, free, moves), {label for label, other in moves.items() if label != other}


@pytest.mark.parametrize("name", ["residual", "encoder"])
def test_any_order_of_free_axes_computes_the_same(name, request, run, data) -> None:
    model = request.getfixturevalue(name)
    feeds = next(data(model).batches(8)).feeds
    other, moved = shuffled(model)
    assert moved
    want = run(model, feeds)
    assert run(other, feeds) == pytest.approx(want, abs=1e-4 * np.abs(want).max())


def test_a_residual_stream_turns_as_one(residual, encoder) -> None:
    free = Free.of(residual)
    stream = free.order("w2", 1)
    assert stream is not None
    assert stream == free.order("w1", 0) == free.order("w3", 0) == free.order("w4", 1)
    assert free.order("w1", 1) is free.order("w4", 0) is None
    assert set(free.order("w2", 0)).isdisjoint(stream)
    free = Free.of(encoder)
    stream = free.order("embed", 1)
    assert stream is not None
    assert {free.order(name, 0) for name in ("wq", "wk", "wv", "wu", "head")} == {stream}
    assert free.order("wv", 1) == free.order("wo", 0) != stream


WAYS = {
    "relu": ("b = Relu(a)", 8, True),
    "prelu": ("b = PRelu(a, slope)", 8, True),
    "clip": ("l = Constant<value_float=0.0>() h = Constant<value_float=6.0>() b = Clip(a, l, h)", 8, True),
    "depthwise": ("b = Conv<group=8, pads=[1,1,1,1]>(a, deep, bias)", 8, True),
    "grouped": ("b = Conv<group=2, pads=[1,1,1,1]>(a, pair)", 8, True),
    "transposed": ("b = ConvTranspose(a, back)", 8, True),
    "joined": ("c = Relu(a) b = Concat<axis=1>(a, c)", 16, True),
    "joined_elsewhere": ("c = Relu(a) b = Concat<axis=3>(a, c)", 8, True),
    "padded": ("p = Constant<value_ints=[0,4,0,0,0,4,0,0]>() b = Pad(a, p)", 16, True),
    "moved_by_padding": ("p = Constant<value_ints=[0,-1,0,0,0,1,0,0]>() b = Pad(a, p)", 8, False),
    "padded_elsewhere": ("p = Constant<value_ints=[0,0,1,1,0,0,1,1]>() b = Pad(a, p)", 8, True),
    "split": ("s = Constant<value_ints=[4,4]>() b, c = Split<axis=1>(a, s)", 4, True),
    "gated": ("m = GlobalAveragePool(a) h = Sigmoid(m) b = Mul(a, h)", 8, True),
    "channel_mean": ("x1 = Constant<value_ints=[1]>() m = ReduceMean(a, x1) b = Sub(a, m)", 8, True),
    "cumulative": ("x1 = Constant<value_int=1>() b = CumSum(a, x1)", 8, False),
    "shuffled": ("t = Constant<value_ints=[0,2,4,4,4]>() r = Reshape(a, t) "
                 "u = Transpose<perm=[0,2,1,3,4]>(r) "
                 "t2 = Constant<value_ints=[0,8,4,4]>() b = Reshape(u, t2)", 8, True),
    "there_and_back": ("t = Transpose<perm=[0,2,3,1]>(a) r = Relu(t) "
                       "b = Transpose<perm=[0,3,1,2]>(r)", 8, True),
    "sorted": ("k = Constant<value_ints=[8]>() b, i = TopK<axis=1>(a, k)", 8, False),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_what_stands_between_two_layers(way, build, run, data) -> None:
    """Where the walk says free, random orders change nothing; where order matters, it says so."""
    middle, channels, free = WAYS[way]
    text = f"g (float[n,4,4,4] x) => (float[n,6,N,M] y) {{ a = Conv(x, w1) {middle} y = Conv(b, w2) }}"
    model = build(
        text,
        {
            "w1": (8, 4, 1, 1), "w2": (6, channels, 1, 1), "slope": (8, 1, 1), "deep": (8, 1, 3, 3),
            "bias": (8,), "pair": (8, 4, 3, 3), "back": (8, 8, 2, 2),
        },
    )  # fmt: skip
    other, moved = shuffled(model)
    made = Free.of(model).slots.get(("w1", 0), np.zeros(8, int))
    assert bool(moved & set(made.tolist())) == free
    feeds = next(data(model, 4).batches(4)).feeds
    assert run(other, feeds) == pytest.approx(run(model, feeds), abs=1e-4)


@pytest.mark.parametrize("name", ["residual", "encoder"])
def test_permuting_keeps_the_function_and_gives_less_away(name, request, run, data) -> None:
    model = request.getfixturevalue(name)
    feeds = next(data(model).batches(8)).feeds
    found = permute(model, SHORT)
    want = run(model, feeds)
    assert run(found.graph, feeds) == pytest.approx(want, abs=1e-4 * np.abs(want).max())
    kept = [step for step in found.steps if step.kept]
    assert kept
    assert all(step.after < step.before for step in kept)
    assert all(step.after == step.before for step in found.steps if not step.kept)
    assert any("not free" in step.what for step in found.steps)


def best_of_all(scores: np.ndarray) -> float:
    """By trying every way to make two fours of eight columns."""
    orders = ([*four, *(i for i in range(8) if i not in four)] for four in combinations(range(8), 4))
    return min(given_away(scores[:, order]) for order in orders)


@pytest.mark.parametrize("seed", range(8))
def test_two_fours_are_divided_nearly_as_well_as_can_be(seed) -> None:
    scores = np.random.default_rng(seed).exponential(size=(12, 8))
    order = arrange(scores, Search(shakes=16))
    assert sorted(order) == list(range(8))
    assert given_away(scores[:, order]) <= 1.02 * best_of_all(scores)


def test_a_hidden_order_that_loses_nothing_is_found() -> None:
    """Columns of a matrix that is 2:4 sparse, in disorder."""
    draw = np.random.default_rng(0)
    scores = draw.exponential(size=(48, 24))
    scores *= mask_2_4(scores, 1)
    scores = scores[:, draw.permutation(24)]
    assert given_away(scores) > 0.05
    assert given_away(scores[:, arrange(scores, Search(exchanges=16, shakes=64))]) < 1e-6


def test_the_same_seed_gives_the_same_order() -> None:
    scores = np.random.default_rng(1).exponential(size=(5000, 16))
    assert (arrange(scores, SHORT) == arrange(scores, SHORT)).all()
