"""What the knapsack says a choice costs, against what is predicted of the graph under that choice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest

from deploy.predict.curve import Estimate
from deploy.predict.elsewhere import BY_PRODUCTS
from deploy.predict.kernels import Kernel
from deploy.predict.latency import Part, predict
from deploy.quantize.candidate import Subject
from deploy.quantize.knapsack import Problem, fastest, fastest_options
from deploy.quantize.pays import forecast, problem_of
from deploy.spec.profile import Figure, Sparsity
from deploy.spec.tensors import INTEGER, Precision

PAD = "<pads=[1,1,1,1]>"
RESIDUAL = f"""g (float[N,4,8,8] x) => (float[N,3] y) {{
    [c1] a = Conv{PAD}(x, w1, b1)
    [r1] b = Relu(a)
    [dw] c = Conv<pads=[1,1,1,1], group=4>(b, wd)
    [hs] d = HardSwish(c)
    [c2] e = Conv{PAD}(d, w2)
    [add] f = Add(e, b)
    [pool] p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(f)
    [c3] h = Conv{PAD}(p, w3)
    [c4] k = Conv{PAD}(p, w4)
    [cat] m = Concat<axis=1>(h, k)
    [flat] q = Reshape(m, shape)
    [fc] y = Gemm(q, wf)
}}"""
WEIGHTS = {
    "w1": (4, 4, 3, 3), "b1": (4,), "wd": (4, 1, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 3, 3),
    "w4": (4, 4, 3, 3), "wf": (128, 3),
}  # fmt: skip


@dataclass(frozen=True)
class Invented:
    """Products in integers take a third, bytes ``bytes_ms`` in any kernel; changes of form by size."""

    bytes_ms: float = 0.0
    cache: None = None

    def kernel(self, kernel: Kernel) -> Part:
        if kernel.op == "convert":
            ms = kernel.bytes * 3e-4
        elif kernel.op in BY_PRODUCTS or kernel.op == "depthwise":
            ms = kernel.macs * (1e-4 if kernel.precision in INTEGER else 3e-4)
        else:
            ms = (0.01 if kernel.precision in INTEGER else 0.02) + len(kernel.nodes) * 0.001
        return Part(kernel, Estimate(ms + self.bytes_ms * kernel.bytes, 0.1, 0.0))

    def fixed(self, moved: int, precision: Precision) -> float:
        return 0.5


@pytest.fixture
def subject_of(graph, quantize, as_subject):
    """A subject of a graph for a runtime, with histograms of random data."""
    import numpy as np

    def make(runtime, text=RESIDUAL, weights=WEIGHTS) -> Subject:
        shape = {"shape": np.array([0, -1], np.int64)} if "shape)" in text else {}
        model = graph(text, {**weights, **shape})
        result = quantize(model, runtime)
        return as_subject(model, runtime, result)

    return make


def runtime_named(name: str, request: pytest.FixtureRequest):
    """As it stands, or reading what it moves without a pair behind it, as OpenVINO does."""
    runtime = request.getfixturevalue(name.removesuffix(" unpaired"))
    if not name.endswith("unpaired"):
        return runtime
    return runtime.model_copy(update={"quant": runtime.quant.model_copy(update={"pair_moved": False})})


def choices(subject: Subject, problem: Problem):
    """Every set of blocks that stay float, with what follows of it for blocks that move data."""
    able = subject.int8_blocks()
    for taken in product((False, True), repeat=len(able)):
        floats = frozenset(b for b, stays in zip(able, taken, strict=True) if stays)
        chosen: dict[str, Precision] = {b: "float" if b in floats else "int8" for b in able}
        movers = [b.id for b in subject.blocks if b.id in problem.options and b.id not in able]
        chosen.update(dict.fromkeys(movers, "float"))
        for mover in [*reversed(movers), *movers]:  # against the graph's order for readers, along for makers
            if any(chosen[block] in INTEGER for block in problem.follows[mover]):
                chosen[mover] = "int8"
        yield floats, chosen


def strays(subject: Subject, costs: Invented) -> list[float]:
    """Predicted less reckoned, for every choice, with what no choice changes left out."""
    problem = problem_of(subject, costs, {})
    found = []
    for floats, chosen in choices(subject, problem):
        predicted = predict(subject.graph, subject.quantized(floats), subject.runtime, costs).ms
        found.append(predicted - problem.ms(chosen))
    return [f - found[-1] for f in found]  # the last one is all float


def test_a_forecast_is_what_is_predicted_and_is_made_once(subject_of, affine, monkeypatch) -> None:
    subject, costs, able = subject_of(affine), Invented(), frozenset(subject_of(affine).int8_blocks())
    asked: list[frozenset[str] | None] = [None, frozenset(), able, frozenset(list(able)[:1]), None, able]
    for floats in asked:
        tensors = {} if floats is None else subject.quantized(floats)
        expected = predict(subject.graph, tensors, subject.runtime, costs)
        assert forecast(subject, costs, floats) == expected
    monkeypatch.setattr("deploy.quantize.pays.predict", None)
    assert forecast(subject, costs) is forecast(subject, costs, able)
    assert forecast(subject, costs, frozenset()).ms < forecast(subject, costs).ms
    with pytest.raises(TypeError):
        forecast(subject, Invented(), able)


RUNTIMES = ["unsigned", "symmetric", "affine", "unsigned unpaired", "affine unpaired"]


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_choice_costs_what_is_predicted_of_it(name, request, subject_of) -> None:
    """Where kernels take what their products take, borders are all that neighbours change."""
    subject = subject_of(runtime_named(name, request))
    able = subject.int8_blocks()
    assert len(able) >= 5
    found = strays(subject, Invented())
    if name.endswith("unpaired"):  # whatever reads it, their Concat of codes moves codes: one move is cheaper
        assert {round(stray, 9) for stray in found} == {0.0, -0.01}
    else:
        assert found == pytest.approx([0.0] * 2 ** len(able), abs=1e-9)


@pytest.mark.parametrize("name", RUNTIMES)
def test_bytes_at_borders_are_all_that_is_off(name, request, subject_of) -> None:
    """Three bytes a number, at every value between blocks once for its maker and once for each reader."""
    subject = subject_of(runtime_named(name, request))
    each = 1e-5
    between = [v for node in subject.graph.graph for v in node.outputs]
    most = sum(3 * each * 8 * 64 * (1 + len(v.consumers())) for v in between)
    total = strays(subject, Invented(bytes_ms=each))
    assert max(abs(s) for s in total) <= most / 4
    assert total[0] == pytest.approx(0.0, abs=1e-9), "everything in integers is right to the last"


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_fastest_choice_is_the_one_predicted_to_be(name, request, subject_of) -> None:
    subject = subject_of(runtime_named(name, request))
    costs = Invented()
    able = subject.int8_blocks()
    chosen = fastest(problem_of(subject, costs, {}))
    mine = frozenset(b for b in able if chosen[b] not in INTEGER)

    def ms(floats: frozenset[str]) -> float:
        return predict(subject.graph, subject.quantized(floats), subject.runtime, costs).ms

    subsets = (
        frozenset(b for b, s in zip(able, taken, strict=True) if s)
        for taken in product((False, True), repeat=len(able))
    )
    assert ms(mine) == pytest.approx(min(map(ms, subsets)), abs=1e-5)


def test_harm_is_that_of_the_block_in_integers(subject_of, unsigned) -> None:
    subject = subject_of(unsigned)
    problem = problem_of(subject, Invented(), {"c1": 0.25})
    assert {o.precision: o.harm for o in problem.options["c1"]} == {"float": 0.0, "int8": 0.25}
    assert {o.harm for block in ("pool", "cat") for o in problem.options[block]} == {0.0}


def test_an_activation_without_an_integer_kernel_writes_floats(subject_of, unsigned) -> None:
    """The block of a convolution and a hard-swish: its result becomes integers again behind it."""
    subject = subject_of(unsigned)
    (inside, behind) = (b for b in problem_of(subject, Invented(), {}).borders if b.maker in ("dw", ""))
    assert (inside.maker, inside.readers) == ("dw", ("",))
    assert (behind.maker, behind.readers) == ("", ("c2",))


@pytest.mark.parametrize("name", RUNTIMES)
def test_what_would_be_quantized_is_what_is(name, request, subject_of) -> None:
    """The outline before any range against the assignment with ranges, for every choice."""
    subject = subject_of(runtime_named(name, request))
    able = subject.int8_blocks()
    for taken in product((False, True), repeat=len(able)):
        floats = frozenset(b for b, s in zip(able, taken, strict=True) if s)
        outlined, assigned = subject.quantized(floats), subject.assignment(floats).tensors
        assert {n: (t.origin == "bias", t.origin == "weight", t.readers) for n, t in outlined.items()} == {
            n: (t.origin == "bias", t.origin == "weight", t.readers) for n, t in assigned.items()
        }


def test_a_runtime_without_integers_has_nothing_to_choose(subject_of, unsigned) -> None:
    subject = replace(subject_of(unsigned), chains=[])
    subject = replace(subject, runtime=unsigned.model_copy(update={"quant": None}))
    assert problem_of(subject, Invented(), {}) == Problem({}, ())


def gaining(runtime, gain: object):
    """The runtime with products so many times as fast where their weights are 2:4 sparse."""
    if isinstance(gain, float):
        gain = Figure(value=gain, source="made up", date=runtime.date)
    return runtime.model_copy(update={"sparsity": Sparsity(pattern="2:4", axis=1, gain=gain)})


def test_every_block_may_be_sparse_where_the_profile_says_that_it_pays(subject_of, symmetric) -> None:
    """Against every choice of form and zeros, each reckoned from a graph whose zeros are really there."""
    harm = {"c1": 0.1, "dw": 0.2, "c2": 0.1, "c3": 0.05, "c4": 0.05, "fc": 0.02}
    sparse = {"c1": 0.3, "dw": 9.0, "c2": 0.05, "c3": 0.2, "fc": 0.01}  # c4 is not to be touched
    runtime = gaining(symmetric, 1.6)
    subject, costs = subject_of(runtime), Invented()
    problem = problem_of(subject, costs, harm, sparse=sparse)
    kinds = {
        block: [(o.precision, o.sparsity) for o in options] for block, options in problem.options.items()
    }
    both = [("float", None), ("int8", None), ("float", "2:4"), ("int8", "2:4")]
    assert kinds["c1"] == kinds["c2"] == kinds["c3"] == kinds["fc"] == both
    assert kinds["dw"] == kinds["c4"] == both[:2]  # one input for each channel is no four
    assert [o.harm for o in problem.options["c2"]] == pytest.approx([0.0, 0.1, 0.05, 0.15])
    able = ("c1", "c2", "fc")
    for zeros in product((False, True), repeat=len(able)):
        chosen = {block for block, taken in zip(able, zeros, strict=True) if taken}
        cleared = subject_of(runtime, weights=WEIGHTS | {w: cleared_of(w) for w in map(WEIGHT.get, chosen)})
        there = problem_of(cleared, costs, harm)
        for block, options in problem.options.items():
            wanted = "2:4" if block in chosen else None
            got = [o.ms for o in options if o.sparsity == wanted]
            assert got == pytest.approx([o.ms for o in there.options[block]])
    budget = 0.45
    taken = fastest_options(problem, budget)
    every = (dict(zip(problem.options, each, strict=True)) for each in product(*problem.options.values()))
    followed = (c for c in every if follows(problem, c) and sum(o.harm for o in c.values()) <= budget)
    assert problem.ms(taken) == pytest.approx(min(map(problem.ms, followed)), abs=1e-5)
    assert {o.sparsity for o in taken.values()} == {None, "2:4"}


WEIGHT = {"c1": "w1", "c2": "w2", "c3": "w3", "fc": "wf"}


def cleared_of(name: str):
    """Weights of that shape with half of each four inputs cleared."""
    import numpy as np

    array = np.random.default_rng(0).standard_normal(WEIGHTS[name]).astype(np.float32)
    if name == "wf":
        array[0::4] = array[1::4] = 0
    else:
        array[:, 0::4] = array[:, 1::4] = 0
    return array


def follows(problem: Problem, chosen) -> bool:
    """Whether blocks that move data go along with who reads them."""
    integer = {block: option.precision in INTEGER for block, option in chosen.items()}
    return all(integer[mover] == any(map(integer.get, by)) for mover, by in problem.follows.items())


@pytest.mark.parametrize("gain", ["unknown", 0.9, True])
def test_without_a_gain_nothing_is_sparse(gain, subject_of, symmetric) -> None:
    if gain is True:
        gain = Figure(value=True, source="made up", date=symmetric.date)
    runtime = gaining(symmetric, gain)
    assert runtime.sparsity_gain == symmetric.sparsity_gain == 1.0
    found = problem_of(subject_of(runtime), Invented(), {}, sparse={"c1": 0.1})
    assert all(o.sparsity is None for options in found.options.values() for o in options)
