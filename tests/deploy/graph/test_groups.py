"""Which channels go together: counted by hand on networks whose structure is known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from convolutional import CONVOLUTIONAL
from sequential import SEQUENTIAL

from deploy.errors import UsageError
from deploy.graph import cost
from deploy.graph.groups import FIXED, find_groups, remaining
from deploy.graph.shrink import shrink

ARRAYS = {
    "w1": (8, 3, 3, 3), "b1": (8,), "s": (8,), "o": (8,), "m": (8,), "v": (8,),
    "w2": (4, 8, 1, 1), "b2": (4,),
}  # fmt: skip


def arrays(**shapes):
    rng = np.random.default_rng(3)
    return {n: np.abs(rng.standard_normal(s)).astype(np.float32) + 0.1 for n, s in shapes.items()}


@pytest.fixture
def plain(parse):
    return parse(
        """g (float[n, 3, 8, 8] x) => (float[n, 4, 6, 6] y) {
            [first] a = Conv (x, w1, b1)  [norm] b = BatchNormalization (a, s, o, m, v)
            [act] c = Relu (b)  [last] y = Conv (c, w2, b2) }""",
        arrays(**ARRAYS),
    )


def test_an_atom_is_a_row_the_numbers_of_its_norm_and_a_column(plain):
    groups = find_groups(plain)
    (family,) = groups.families
    assert (family.name, family.makes, len(family.atoms), family.restricted) == (
        "first",
        ("first",),
        8,
        False,
    )
    third = family.atoms[3]
    places = {(p.tensor, p.axis): (p.indices.tolist(), p.role) for p in third.places}
    assert places.pop(("w1", 0)) == ([3], "makes") and places.pop(("w2", 1)) == ([3], "reads")
    assert places == {(name, 0): ([3], "follows") for name in ("b1", "s", "o", "m", "v")}
    # 27 weights, a bias, scale and shift of the norm (its statistics are not trained), 4 weights of the next
    assert third.parameters == 27 + 1 + 2 + 4
    assert third.macs == 36 * (27 + 4)
    assert groups.left == {"last": "its channels stay: they are the model's inputs or outputs"}


def test_labels_of_values_say_which_channel_is_whose(plain):
    groups = find_groups(plain)
    labels = [atom.label for atom in groups.families[0].atoms]
    assert groups.values["c"].shape == (1, 8, 1, 1)
    assert groups.values["c"].reshape(-1).tolist() == labels
    assert "x" not in groups.values and "y" not in groups.values


def test_protected_nodes_keep_all_they_make(plain):
    groups = find_groups(plain, ["act"])
    assert groups.families == ()
    assert groups.left["first"] == "its channels stay: it is protected (at act)"


def test_a_protected_name_that_does_not_exist_is_refused_with_its_neighbours(plain):
    with pytest.raises(UsageError, match="no node is called 'frist'") as error:
        find_groups(plain, ["frist"])
    assert "first" in error.value.hint


NETWORKS = {**CONVOLUTIONAL, **SEQUENTIAL}


@cache
def network(name):
    model = NETWORKS[name]()
    return model, find_groups(model)


@pytest.mark.parametrize(
    ("name", "sizes"),
    {
        "vgg": [8, 12, 16, 32],
        "resnet_padded": [8, 8, 16, 8, 16, 16, 32],  # the stream, what each stage adds to it, inner channels
        "resnext": [16, 8, 8, 8],  # the stream; 8 groups; 8 channels of each of 2 groups, before and behind
        "densenet": [8, 6, 6, 6, 13, 6, 6, 12],
        # The first half is shuffled twice: what meets is one, and half of it is read by the second block.
        "shufflenet_v2": [4, 4, 8, 8, 8, 24],
        "gpt": [24, 4, 48, 4, 48],  # width, then heads and hidden units of each block
        "crnn": [8, 12, 16],
        "non_local": [12, 6, 6],
        "einsum_attention": [20, 4],
    }.items(),
)
def test_families(name, sizes):
    _, groups = network(name)
    assert sorted(len(f.atoms) for f in groups.families) == sorted(sizes)


def test_what_is_alike_in_other_layers_is_of_the_same_kind():
    kinds = {f.name: f.kind for f in find_groups(SEQUENTIAL["gpt"]()).families}
    assert len(set(kinds.values())) == 3  # the stream, the heads of both blocks, the hidden units of both


def test_heads_are_whole():
    heads = [f for f in find_groups(SEQUENTIAL["vit_packed"]()).families if len(f.atoms) == 4]
    assert len(heads) == 2
    weight = next(p for p in heads[0].atoms[1].places if len(p.indices) == 18 and p.axis == 1)
    # queries, keys and values of 24 columns each, of which the second head has 6
    assert weight.indices.tolist() == [*range(6, 12), *range(30, 36), *range(54, 60)]


@pytest.mark.parametrize(
    "name",
    ["vgg", "resnet_padded", "resnext", "efficientnet", "unet", "detector", "vit_packed", "crnn", "mixer"],
)
def test_numbers_of_atoms_are_those_of_the_smaller_graph(name):
    """Parameters and MACs of every family's first atom, and of a third of all, against the graph without."""
    model, groups = network(name)
    some = [atom for family in groups.families for atom in family.atoms[: len(family.atoms) // 3]]
    first = groups.families[0].atoms[0]
    before = cost.parameters(model), cost.macs(model)
    for removed in ([first], some):
        labels = [atom.label for atom in removed]
        smaller = shrink(model, groups, labels)
        whole, left = remaining(groups, []), remaining(groups, labels)
        assert before[0] - cost.parameters(smaller) == whole[0] - left[0]
        if before[1] is not None:
            assert abs((before[1] - cost.macs(smaller)) - (whole[1] - left[1])) <= 2
            if removed == [first]:
                assert abs(first.macs - (before[1] - cost.macs(smaller))) <= 2
        if removed == [first]:
            assert first.parameters == before[0] - cost.parameters(smaller)


LEFT = {
    "softmax over channels": (
        "a = Conv (x, w)  b = Softmax <axis = 1> (a)  y = Conv (b, u)",
        "Softmax compares",
    ),
    "largest channel": (
        "a = Conv (x, w)  b = ReduceMax <keepdims = 1> (a, one)  y = Conv (b, u1)",
        "ReduceMax compares",
    ),
    "computed weights": ("a = Conv (x, w)  b = Abs (u)  y = Conv (a, b)", "weights are computed"),
    "its own number": (
        "a = Conv (x, w)  b = Relu (a)  y = Conv (b, u)  z = Shape <start = 1, end = 2> (b)",
        "number is an output",
    ),
    "unknown": ("a = Conv (x, w)  b = LRN <size = 3> (a)  y = Conv (b, u)", "cannot be followed through LRN"),
    "input": ("a = Conv (x, w3)  b = Add (a, x)  y = Conv (b, u3)", "meet channels that must stay"),
    "body": (
        "a = Conv (x, w)  b = If (c) <then_branch = t () => (float[n, 4, 4, 4] p) { p = Relu (a) },"
        " else_branch = e () => (float[n, 4, 4, 4] q) { q = Neg (a) }>  y = Conv (b, u)",
        "cannot be followed through If",
    ),
    "the number of channels": (
        "a = Conv (x, w)  s = Shape <start = 1, end = 2> (a)  f = Cast <to = 1> (s)  b = Div (a, f)"
        "  y = Conv (b, u)",
        "Cast computes with their number|Div computes with their number",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_followed_is_left_with_a_reason(parse, name):
    body, reason = LEFT[name]
    constants = arrays(w=(4, 3, 1, 1), w3=(3, 3, 1, 1), u=(2, 4, 1, 1), u3=(2, 3, 1, 1), u1=(2, 1, 1, 1))
    used = {k: v for k, v in constants.items() if f" {k})" in body or f"({k})" in body}
    extra = {"one": np.array([1])} if "one" in body else {}
    extra |= {"c": np.array(True)} if "(c)" in body else {}
    also = ", int64[1] z" if " z = " in body else ""
    model = parse(f"g (float[n, 3, 4, 4] x) => (float[n, 2, 4, 4] y{also}) {{ {body} }}", used | extra)
    groups = find_groups(model)
    assert groups.families == ()
    said = " ".join(groups.left.values())
    assert any(part in said for part in reason.split("|")), said


def test_every_layer_makes_a_family_or_is_left_with_a_reason():
    for name in NETWORKS:
        model, groups = network(name)
        said = {node for family in groups.families for node in family.makes} | set(groups.left)
        grouped = {slot.node for slot in groups.slots}  # a depthwise convolution follows its input
        for node in model.graph:
            if node.op_type in ("Conv", "ConvTranspose", "Gemm", "LSTM", "GRU"):
                assert node.name in said | grouped, (name, node.name)


def test_weights_that_are_read_twice_agree():
    groups = find_groups(SEQUENTIAL["gpt"]())
    table = [slot for slot in groups.slots if slot.tensor == "k0"]
    assert {slot.axis for slot in table} == {1}  # the rows are the words of the answer
    assert len({slot.labels.tobytes() for slot in table}) == 1
    assert FIXED not in table[0].labels
