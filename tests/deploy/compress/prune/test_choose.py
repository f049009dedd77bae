import numpy as np
import pytest
from convolutional import CONVOLUTIONAL
from hypothesis import given, settings
from hypothesis import strategies as st
from sequential import SEQUENTIAL

from deploy.compress.prune.amount import counted
from deploy.compress.prune.choose import by_rank, matching, ordered, rankings, step_of, widths
from deploy.compress.prune.criteria import drawn
from deploy.errors import UsageError
from deploy.graph.groups import find_groups
from deploy.graph.shrink import shrink

NETWORKS = {**CONVOLUTIONAL, **SEQUENTIAL}
VGG = NETWORKS["vgg"]()
FOUND = find_groups(VGG)
MACS = counted(VGG, FOUND, "macs")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 64), st.floats(0, 0.99))
def test_widths_are_multiples_and_at_least_what_must_stay(whole: int, step: int, keep: float) -> None:
    least = int(np.ceil(keep * whole))
    found = widths(whole, step, least)
    assert found[0] == whole
    assert list(found) == sorted(set(found), reverse=True)
    assert all(n % step == 0 and n >= max(1, least) for n in found[1:])
    lower = [n for n in range(1, whole) if n % step == 0 and n >= least]
    assert set(found[1:]) == set(lower)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["layer", "global"]), st.integers(1, 8), st.floats(0.05, 0.8), st.integers(0, 9))
def test_ranks_meet_the_goal_with_aligned_widths(scope: str, align: int, share: float, seed: int) -> None:
    allowed = [widths(len(f.atoms), step_of(f, align, strict=True), 1) for f in FOUND.families]
    amount = MACS
    rows = np.array([[max(a) for a in allowed], [min(a) for a in allowed]], float)
    whole, least = amount(rows)
    goal = max(float(least), (1 - share) * float(whole))
    kept = by_rank(rankings(FOUND, drawn(FOUND, seed), scope), allowed, amount, goal)
    left = float(amount(kept[None].astype(float))[0])
    assert left <= goal * (1 + 1e-9)
    assert all(int(n) in own for n, own in zip(kept, allowed, strict=True))
    for i, own in enumerate(allowed):  # nothing more can be given back
        if wider := [n for n in own if n > kept[i]]:
            row = kept.astype(float)
            row[i] = min(wider)
            assert amount(row[None])[0] > goal


def test_heads_count_as_their_channels() -> None:
    model = NETWORKS["vit"]()
    heads = [f for f in find_groups(model).families if any(p.indices.size > 1 for p in f.atoms[0].places)]
    assert heads
    for family in heads:
        size = min(p.indices.size for p in family.atoms[0].places if p.role == "makes")
        assert step_of(family, size, strict=True) == 1
        assert step_of(family, 3 * size, strict=True) == 3


def test_aligned_widths_are_those_of_the_weights() -> None:
    model = NETWORKS["mobilenet_v2"]()
    groups = find_groups(model)
    allowed = [widths(len(f.atoms), step_of(f, 4, strict=True), 1) for f in groups.families]
    kept = by_rank(rankings(groups, drawn(groups, 0), "global"), allowed, counted(model, groups, "macs"), 5e4)
    gone = [a.label for f, n in zip(groups.families, kept, strict=True) for a in f.atoms[n:]]
    smaller = shrink(model, groups, gone)
    made = [n.inputs[1].shape[0] for n in smaller.graph if n.op_type == "Conv"]
    assert all(count % 4 == 0 for count in made)


def test_narrow_groups_take_a_smaller_alignment_unless_it_is_insisted_on() -> None:
    family = FOUND.families[0]
    assert len(family.atoms) == 8
    assert step_of(family, 16, strict=True) == 16
    assert widths(8, 16, 1) == (8,)
    assert step_of(family, 16, strict=False) == 2


def test_the_same_share_of_each_layer() -> None:
    amount = counted(VGG, FOUND, "macs")
    allowed = [widths(len(f.atoms), 1, 1) for f in FOUND.families]
    sizes = np.array([len(f.atoms) for f in FOUND.families])
    goal = float(amount(np.ceil(sizes / 2)[None])[0])
    kept = by_rank(rankings(FOUND, drawn(FOUND, 0), "layer"), allowed, amount, goal)
    assert np.abs(kept - sizes / 2).max() <= 1.5


def test_ranks_together_take_the_lowest_relative_scores() -> None:
    scores = {a.label: 1.0 for f in FOUND.families for a in f.atoms}
    weak = FOUND.families[2].atoms[5].label, FOUND.families[0].atoms[1].label
    scores |= dict.fromkeys(weak, 0.01)
    first = rankings(FOUND, scores, "global")[0][:2]
    assert set(first.tolist()) == {0, 2}
    assert ordered(FOUND.families[2], scores)[0] == weak[0]


def test_equal_structures_are_ranked_together_and_apart_from_others() -> None:
    groups = find_groups(NETWORKS["resnet_padded"]())
    scores = drawn(groups, 0)
    pools = rankings(groups, scores, "global", isomorphic=True)
    kinds = [{groups.families[i].kind for i in pool.tolist()} for pool in pools]
    assert all(len(kind) == 1 for kind in kinds)
    assert len(pools) == len({f.kind for f in groups.families}) < len(groups.families)


def test_patterns_name_nodes_and_near_ones_are_told() -> None:
    names = [node.name or "" for node in VGG.graph]
    assert matching(VGG, [f"{names[0]}*", names[2]]) == [
        *(n for n in names if n.startswith(names[0])), *([] if names[2].startswith(names[0]) else [names[2]]),
    ]  # fmt: skip
    with pytest.raises(UsageError, match="the name of no node") as refused:
        matching(VGG, [names[0] + "q"])
    assert names[0] in (refused.value.hint or "")
