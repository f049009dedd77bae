"""What is said of each block: figures against predictions of whole graphs, reasons against the case."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from deploy.data.interval import Drop
from deploy.predict.curve import Estimate
from deploy.predict.kernels import Kernel
from deploy.predict.latency import Part, UnknownCostError, predict
from deploy.quantize.candidate import Subject, build_candidate
from deploy.quantize.decide import SLOWER_SO, Decided
from deploy.quantize.explain import explain
from deploy.quantize.trial import trial_of
from deploy.spec.explanation import Explained, Explanation
from deploy.spec.overlay import KernelClass
from deploy.spec.profile import Runtime
from deploy.spec.tensors import INTEGER

PAD = "<pads=[1,1,1,1]>"
NETWORK = f"""g (float[N,4,8,8] x) => (float[N,3] y) {{
    [c1] a = Conv{PAD}(x, w1, b1)
    [r1] b = Relu(a)
    [dw] c = Conv<pads=[1,1,1,1], group=4>(b, wd)
    [c2] e = Conv{PAD}(c, w2)
    [sm] f = Softmax(e)
    [pool] p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(f)
    [c3] h = Conv{PAD}(p, w3)
    [flat] q = Reshape(h, shape)
    [fc] y = Gemm(q, wf)
}}"""
WEIGHTS = {
    "w1": (4, 4, 3, 3), "b1": (4,), "wd": (4, 1, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 3, 3),
    "wf": (64, 3), "shape": np.array([0, -1], np.int64),
}  # fmt: skip
SQNR = {"c1": 20.0, "dw": 10.0, "c2": 30.0, "c3": 40.0, "fc": math.inf}


@dataclass(frozen=True)
class Invented:
    """One millisecond in floats; in integers ``speed`` times as fast; ``change`` for a change of form."""

    speed: Mapping[KernelClass, float] = field(default_factory=dict)
    change: float = 0.1
    cache: None = None

    def kernel(self, kernel: Kernel) -> Part:
        ms = 1.0 if kernel.precision not in INTEGER else 1.0 / self.speed.get(kernel.op, 2.0)
        if kernel.op == "convert":
            ms = self.change
        return Part(kernel, Estimate(ms, 0.1, 0.0))

    def fixed(self, moved: int, precision: str) -> float:
        return 0.5


Explainer = Callable[..., Explained]


@pytest.fixture
def subject(graph, quantize, as_subject, unsigned: Runtime) -> Subject:
    model = graph(NETWORK, WEIGHTS)
    return as_subject(model, unsigned, quantize(model, unsigned))


@pytest.fixture
def explained(subject: Subject, tmp_path: Path) -> Explainer:
    """The explanations of a build of ``subject`` with these blocks float, by name."""

    def make(
        floats: Collection[str] = (),
        costs: Invented | None = Invented(),
        *,
        why: str = "",
        drop: float | None = None,
        whole: float | None = None,
        of: Subject = subject,
    ) -> Explained:
        built = [
            build_candidate(of, chosen, tmp_path / str(i), sqnr=SQNR, reasons=dict.fromkeys(floats, why))
            for i, chosen in enumerate((frozenset(floats), frozenset[str]()))
        ]
        drops = [None if d is None else Drop(d, d, d) for d in (drop, whole)]
        decided = Decided(of, built[0], frozenset(floats), drops[0], True, (), SQNR)
        trial = trial_of(built[1], of, frozenset(), drops[1])
        return explain(of, decided, costs, basis="measured here", why_not="unknown", trials=[trial])

    return make


def named(found: Explained) -> dict[str, Explanation]:
    return {block.id: block for block in found.blocks}


@pytest.mark.parametrize("floats", [(), ("dw",), ("c1", "c3"), ("c1", "dw", "c2", "c3", "fc")])
def test_what_the_other_form_would_bring_is_what_whole_graphs_are_predicted_to_take(
    explained: Explainer, subject: Subject, floats: tuple[str, ...]
) -> None:
    costs = Invented({"depthwise": 0.8})
    found = explained(floats, costs)

    def ms(chosen: frozenset[str]) -> float:
        return predict(subject.graph, subject.quantized(chosen), subject.runtime, costs).ms

    now = ms(frozenset(floats))
    assert found.predicted_ms == pytest.approx(now, rel=1e-3)
    for block in subject.int8_blocks():
        turned = ms(frozenset(floats) ^ {block})
        assert named(found)[block].instead_ms == pytest.approx(turned - now, abs=1e-3)


def test_kernels_and_borders_stand_apart(explained: Explainer) -> None:
    block = named(explained(("dw",), Invented({"depthwise": 0.8})))["dw"]
    assert (block.precision, block.float_ms, block.integer_ms) == ("float", 1.0, 1.25)
    assert block.changes_ms == pytest.approx(0.2), "from integers and back"


def test_a_kernel_that_is_slower_in_integers(explained: Explainer) -> None:
    block = named(explained(("dw",), Invented({"depthwise": 0.8}), why=SLOWER_SO))["dw"]
    assert block.reason == "INT8 depthwise convolution is 0.8 times float here"


def test_a_kernel_that_is_faster_but_not_worth_its_borders(explained: Explainer) -> None:
    costs = Invented({"gemm": 1.1}, change=0.5)
    block = named(explained(("c3", "fc"), costs, why=SLOWER_SO))["fc"]
    saved, cost = re.fullmatch(
        r"INT8 would save (\S+) ms, the changes of form around it cost (\S+) ms", block.reason
    ).groups()  # type: ignore[union-attr]
    assert float(saved) == pytest.approx(1 - 1 / 1.1, rel=0.02)
    assert float(cost) == pytest.approx(0.5, rel=0.02)


def test_a_slower_kernel_that_stays_in_integers_for_its_neighbours(explained: Explainer) -> None:
    block = named(explained((), Invented({"depthwise": 0.8}, change=0.5)))["dw"]
    assert block.instead_ms == pytest.approx(0.75)
    assert block.reason == (
        "INT8 depthwise convolution is 0.8 times float here, "
        "but as float it would cost 1 ms in changes of form"
    )


def test_who_is_float_for_its_noise(explained: Explainer) -> None:
    harm = {block: 10 ** (-db / 10) for block, db in SQNR.items()}
    share = harm["dw"] / sum(harm.values())
    for why in ("", SLOWER_SO):
        block = named(explained(("dw",), why=why))["dw"]
        assert block.noise == pytest.approx(share, rel=1e-3)
        assert block.reason.startswith(
            f"kept float to hold the budget: it makes {100 * share:.0f} % of the noise; INT8 would save "
        )


def test_where_a_race_decided_the_table_may_think_otherwise(explained: Explainer) -> None:
    reason = named(explained(("dw",), why="INT8 is slower here"))["dw"].reason
    assert reason.startswith("INT8 is slower here; by the costs of kernels INT8 would save ")


def test_points_are_shares_of_measured_drops(explained: Explainer) -> None:
    """Of the artifact's own drop for what is in integers, of that of all integers for what is not."""
    blocks = named(explained(("dw",), drop=0.001, whole=0.05))
    harm = {block: 10 ** (-db / 10) for block, db in SQNR.items()}
    assert blocks["dw"].points == pytest.approx(0.05 * harm["dw"] / sum(harm.values()), rel=1e-2)
    rest = sum(h for block, h in harm.items() if block != "dw")
    assert blocks["c1"].points == pytest.approx(0.001 * harm["c1"] / rest, rel=1e-2)
    assert blocks["sm"].points is None
    shares = [b.points for b in blocks.values() if b.precision == "int8"]
    assert sum(p for p in shares if p is not None) == pytest.approx(0.001, rel=1e-2)


def test_what_gained_by_luck_cost_nothing(explained: Explainer) -> None:
    assert {b.points for b in explained((), drop=-0.01).blocks} == {0.0, None}


def test_who_has_no_integer_kernel_and_who_only_moves_data(explained: Explainer) -> None:
    blocks = named(explained())
    assert blocks["sm"].reason == "unsigned has no integer kernel for Softmax here"
    assert blocks["sm"].integer_ms is None and blocks["sm"].float_ms == 1.0
    assert blocks["pool"].reason.startswith("only moves data: ")


def test_without_costs_noise_and_reasons_are_all_that_is_said(explained: Explainer) -> None:
    found = explained(("dw",), None)
    assert (found.basis, found.why_not, found.predicted_ms) == ("", "unknown", None)
    for block in found.blocks:
        assert block.float_ms is block.integer_ms is block.changes_ms is block.instead_ms is None
    assert re.fullmatch(
        r"kept float to hold the budget: it makes \d+ % of the noise", named(found)["dw"].reason
    )
    assert named(found)["dw"].sqnr_db == 10.0


def test_costs_that_are_known_of_some_kernels_only_are_not_used(explained: Explainer) -> None:
    class Half(Invented):
        def kernel(self, kernel: Kernel) -> Part:
            if kernel.op == "softmax":
                raise UnknownCostError("nothing like softmax in float was measured")
            return super().kernel(kernel)

    found = explained((), Half())
    assert found.why_not == "nothing like softmax in float was measured"
    assert {block.float_ms for block in found.blocks} == {None}


def test_a_size_that_is_free_is_named(
    graph, quantize, as_subject, unsigned: Runtime, explained: Explainer
) -> None:
    model = graph(
        f"g (float[N,4,H,8] x) => (float[N,4,H,8] y) {{ [c1] y = Conv{PAD}(x, w1) }}", {"w1": (4, 4, 3, 3)}
    )
    of = as_subject(model, unsigned, quantize(model, unsigned))
    assert explained((), of=of).why_not == "a size at 'c1' is free"


def test_what_a_user_excluded_says_so(explained: Explainer, subject: Subject) -> None:
    of = replace(subject, excluded=frozenset(("dw",)))
    assert named(explained((), of=of))["dw"].reason == "excluded by the user"
