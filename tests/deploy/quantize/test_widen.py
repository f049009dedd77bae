"""Activations of 16 bits, block by block: which blocks, by what parameters, how many, what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from deploy.data.interval import Drop
from deploy.errors import UsageError
from deploy.progress import SILENT
from deploy.quantize.candidate import Candidate, Subject
from deploy.quantize.decide import Decided, decide
from deploy.quantize.explain import explain
from deploy.quantize.patience import Patience
from deploy.quantize.widen import able_to_widen, widened, with_makers

IMAGE, PAD = "float[N,4,6,6]", "<pads=[1,1,1,1]>"
NET = f"""g ({IMAGE} x) => ({IMAGE} y) {{
[c1] a = Conv{PAD}(x, w1, b1)  [r1] ar = Relu(a)
[c2] b = Conv{PAD}(ar, w2, b2)
[m] bm = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(b)
[c3] c = Conv{PAD}(bm, w3, b3)
[s] d = Softmax(c)
[c4] y = Conv{PAD}(d, w4, b4) }}"""
WEIGHTS = {f"w{i}": (4, 4, 3, 3) for i in range(1, 5)} | {f"b{i}": (4,) for i in range(1, 5)}


@pytest.fixture
def rules(affine):
    """INT8 as LiteRT wants it, and INT16 beside it for convolutions."""
    wide = affine.quant.model_copy(
        update={
            "activation": "int16", "symmetric_activation": True, "bias": "float", "fixed_output": {},
            "compute": ("Conv",), "instead_of_float": True,
        }
    )  # fmt: skip
    return affine.model_copy(update={"quant16": wide, "forms": ("w8a16",)})


@pytest.fixture
def built(graph, quantize, rules, as_subject):
    model = graph(NET, WEIGHTS)
    result = quantize(model, rules)
    return as_subject(model, rules, result), result.dataset


def test_blocks_need_their_kernels_at_16_bits(built):
    subject, _ = built
    assert subject.int8_blocks() == ["c1", "c2", "c3", "s", "c4"]
    assert able_to_widen(subject) == ["c1", "c2", "c3", "c4"]
    with pytest.raises(UsageError, match="in block 's', which cannot have them here"):
        widened(subject, ["s"])
    alone = replace(subject, runtime=subject.runtime.model_copy(update={"quant16": None, "forms": ()}))
    assert able_to_widen(alone) == []


def test_what_has_no_kernel_of_16_bits_is_float_within_its_block(graph, quantize, rules, as_subject):
    model = graph(
        f"""g ({IMAGE} x) => ({IMAGE} y) {{
        [c1] a = Conv{PAD}(x, w1)  [s] b = Sigmoid(a)  [c2] y = Conv{PAD}(b, w2) }}""",
        {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3)},
    )
    subject = as_subject(model, rules, quantize(model, rules))
    assert [(b.id, b.nodes) for b in subject.blocks] == [("c1", ("c1", "s")), ("c2", ("c2",))]
    narrow, plan = (widened(subject, w).assignment(()).tensors for w in ([], ["c1"]))
    assert (narrow["b"].origin, narrow["b"].readers) == ("fixed", ())
    assert (plan["a"].type, plan["a"].uses) == ("int16", {}), (
        "as the kernel makes it; the Sigmoid reads floats"
    )
    assert (plan["b"].type, plan["b"].origin) == ("int8", "calibration"), (
        "for who reads it; it is made in float"
    )
    assert widened(subject, ["c1", "c2"]).assignment(()).tensors["b"].type == "int16"


def test_who_makes_what_a_block_reads_goes_with_it(built):
    subject, _ = built
    assert with_makers(subject, ["c2"]) == {"c1", "c2"}
    assert with_makers(subject, ["c3"]) == {"c2", "c3"}, "through what only moves it"
    assert with_makers(subject, ["c4"]) == {"c4"}, "a Softmax has 8 bits whatever is done"


def test_values_are_stored_as_they_are_made_and_read_as_they_are_computed(built):
    subject, _ = built
    plan = widened(subject, ["c2", "c3"]).assignment(()).tensors
    narrow = subject.assignment(()).tensors
    own = {name: plan[name].type for name in ("x", "ar", "b", "bm", "c", "d", "y")}
    assert own == {
        "x": "int8",
        "ar": "int8",
        "b": "int16",
        "bm": "int16",
        "c": "int16",
        "d": "int8",
        "y": "int8",
    }
    turned = {name: {reader: p.type for reader, p in t.uses.items()} for name, t in plan.items() if t.uses}
    assert turned == {"ar": {"c2": "int16"}, "c": {"s": "int8"}}
    assert plan["bm"].scale == plan["b"].scale, "what is moved keeps its parameters"
    assert plan["ar"].scale == narrow["ar"].scale
    assert plan["c"].uses["s"].scale == narrow["c"].scale
    # Symmetric steps of 16 bits; the range is that of the values, whatever the others are.
    seen = subject.histograms["b"]
    assert plan["b"].zero_point == (0,)
    np.testing.assert_allclose(plan["b"].scale[0], max(-seen.low, seen.high) / 32767, rtol=0.01)
    assert {"b1", "b4"} <= plan.keys(), "biases of kernels of 8 bits are integers"
    assert plan.keys().isdisjoint({"b2", "b3"}), "and of those of 16 bits the runtime's"


def test_a_mover_between_widths_is_narrow(built):
    subject, _ = built
    before = widened(subject, ["c2"]).assignment(()).tensors
    assert (before["b"].type, before["b"].uses["m"].type, before["bm"].type) == ("int16", "int8", "int8")
    behind = widened(subject, ["c3"]).assignment(()).tensors
    assert (behind["b"].type, behind["bm"].type, behind["bm"].uses["c3"].type) == ("int8", "int8", "int16")


def test_an_input_is_stored_as_its_widest_reader_has_it(graph, quantize, rules, as_subject):
    model = graph(
        f"g ({IMAGE} x) => ({IMAGE} y, {IMAGE} z) {{ [c1] y = Conv{PAD}(x, w1)  [c2] z = Conv{PAD}(x, w2) }}",
        {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3)},
    )
    plan = widened(as_subject(model, rules, quantize(model, rules)), ["c2"]).assignment(()).tensors
    assert plan["x"].type == "int16"
    assert {reader: p.type for reader, p in plan["x"].uses.items()} == {"c1": "int8"}


def test_biases_have_the_scale_of_what_their_kernel_reads(built):
    subject, _ = built
    plan = widened(subject, ["c1"]).assignment(()).tensors
    assert plan["ar"].type == "int16"
    read = plan["ar"].uses["c2"]
    np.testing.assert_allclose(plan["b2"].scale, read.scale[0] * np.array(plan["w2"].scale), rtol=1e-6)


def test_more_blocks_of_16_bits_leave_less_noise(built, session, random_feeds, sqnr):
    from deploy.graph.qdq import insert

    subject, _ = built
    feeds = random_feeds(subject.graph)
    exact = session(subject.graph).run(None, feeds)[0]

    def found(wide: list[str]) -> float:
        made = widened(subject, wide).assignment(())
        noisy = session(insert(subject.graph, made.tensors, made.codes), optimised=False).run(None, feeds)[0]
        return sqnr(exact, noisy)

    eight, half, all_ = found([]), found(["c1", "c2", "c3"]), found(["c1", "c2", "c3", "c4"])
    assert eight < half < all_


class Judge:
    """Scores by how many blocks have 16 bits and how many are float."""

    def __init__(self, score: Callable[[int, int], float]) -> None:
        self.score = score
        self.seen: list[tuple[int, int]] = []

    def __call__(self, candidate: Candidate) -> Drop:
        kinds = [block.precision for block in candidate.plan.blocks]
        counts = kinds.count("w8a16"), kinds.count("float") - 1  # one only moves data
        self.seen.append(counts)
        drop = self.score(*counts)
        return Drop(drop, drop, drop)


@pytest.fixture
def decided(built, tmp_path):
    subject, dataset = built

    def run(score, accept=None, *, instead=True, given: Subject = subject, **more) -> Decided:
        wide = given.runtime.quant16.model_copy(update={"instead_of_float": instead})
        one = replace(given, runtime=given.runtime.model_copy(update={"quant16": wide}))
        settings = {"precision": "auto", "locked": None, **more}
        return decide(
            one, max_drop=0.01, calibration=dataset, judge=Judge(score), accept=accept,
            workdir=tmp_path / "w", threads=1, progress=SILENT, **settings,
        )  # fmt: skip

    return run


def held(found: Decided) -> tuple[int, int]:
    kinds = [block.precision for block in found.candidate.plan.blocks]
    return kinds.count("w8a16"), len(found.float_blocks)


def test_the_fewest_blocks_of_16_bits_that_hold_the_budget_come_before_floats(decided):
    found = decided(lambda wide, floats: 0.0 if wide >= 2 or floats else 0.05)
    assert held(found) == (2, 0)
    assert found.within_budget
    assert found.subject.refinement.wide == {
        b.id for b in found.candidate.plan.blocks if b.precision == "w8a16"
    }
    (rung,) = found.rungs
    assert (rung.name, rung.kept, rung.places, rung.drop) == ("wide", True, 2, 0.0)
    assert rung.gain_db > 0
    assert [c.what for c in found.choices] == ["INT8 blocks", "16-bit activations"]
    assert found.choices[1].chosen == "2 of 5 blocks"


def test_nothing_is_widened_where_int8_holds(decided):
    found = decided(lambda wide, floats: 0.0)
    assert (held(found), found.rungs) == ((0, 0), ())


def test_floats_and_16_bits_together(decided):
    """With one float block and three of 16 bits: as few floats as 16 bits allow, then as few of these."""
    found = decided(lambda wide, floats: 0.0 if floats >= 1 and wide + 2 * floats >= 5 else 0.05)
    assert held(found)[1] == 1
    assert held(found)[0] >= 3
    assert found.rungs[0].places == held(found)[0]


@pytest.mark.parametrize("tries", range(8))
def test_where_time_ends_what_holds_by_then_is_taken(decided, tries):
    """Each number of tries after which time is over: floats at least, and no drop that was not measured."""
    seen = []

    class Tries(Patience):
        def over(self) -> bool:
            return len(seen) >= tries

    def score(wide: int, floats: int) -> float:
        seen.append((wide, floats))
        return 0.0 if floats >= 1 and wide + 2 * floats >= 5 else 0.05

    found = decided(score, patience=Tries())
    assert found.within_budget
    assert found.drop == Drop(0.0, 0.0, 0.0)
    assert len(found.float_blocks) >= 1
    assert (held(found)[0], len(found.float_blocks)) in seen
    assert len(seen) <= tries + 2, "beside floats, once for each width"


def test_where_16_bits_do_not_help_blocks_are_float_and_the_ladder_says_so(decided):
    found = decided(lambda wide, floats: 0.0 if floats == 5 else 0.05)
    assert (held(found), found.within_budget) == ((0, 5), True)
    (rung,) = found.rungs
    assert (rung.kept, rung.why) == (False, "they do not hold the budget")


def test_where_floats_are_cheaper_nothing_is_widened_and_that_is_said(decided):
    found = decided(lambda wide, floats: 0.0 if wide >= 2 or floats >= 2 else 0.05, instead=False)
    assert held(found) == (0, 2)
    (rung,) = found.rungs
    assert (rung.kept, rung.why) == (False, "they are slower than floats here")
    said = {b.id: b.reason for b in explain(found.subject, found).blocks}
    for block in found.float_blocks:
        why = "no kernel for activations" if block == "s" else "activations of 16 bits are slower than floats"
        assert why in said[block]


def test_eval_data_that_refuse_get_more_of_16_bits_before_floats(decided):
    accept = Judge(lambda wide, floats: 0.0 if wide == 4 else 0.05)
    found = decided(lambda wide, floats: 0.0, accept)
    assert held(found) == (4, 0)
    assert accept.seen[0] == (0, 0)
    assert found.within_budget
    assert "eval data refused" in found.choices[1].reason


def test_eval_data_that_refuse_where_16_bits_did_not_hold_get_more_floats(decided):
    def accepted(wide: int, floats: int) -> float:
        assert len(accept.seen) <= 5, "the same again and again"
        return 0.0 if floats >= 4 else 0.05

    accept = Judge(accepted)
    found = decided(lambda wide, floats: 0.0 if floats == 5 or (wide == 0 and floats >= 2) else 0.05, accept)
    assert (held(found)[0], found.within_budget) == (0, True)
    assert [floats for _, floats in accept.seen] == [2, 4]


def test_a_precision_that_was_asked_for_is_kept(decided):
    assert held(decided(lambda wide, floats: 0.05, precision="int8")) == (0, 0)


def test_a_lock_builds_the_same_again(decided):
    first = decided(lambda wide, floats: 0.0 if wide >= 2 else 0.05)
    again = decided(
        lambda wide, floats: 0.0, locked=first.float_blocks, locked_wide=sorted(first.subject.refinement.wide)
    )
    assert again.candidate.plan == first.candidate.plan


def test_the_explanation_says_what_a_block_makes_of_the_noise_in_int8(decided):
    found = decided(lambda wide, floats: 0.0 if wide >= 2 else 0.05)
    blocks = {b.id: b for b in explain(found.subject, found).blocks}
    for name in found.subject.refinement.wide:
        assert blocks[name].precision == "w8a16"
        assert "activations of 16 bits to hold the budget: in INT8 it makes" in blocks[name].reason
