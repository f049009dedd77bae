"""Labels move as numbers do: ONNX Runtime moves an array of them, and the result is what the rules say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.graph.label_moves import MOVES, segments
from deploy.graph.labels import Labels, varying
from deploy.graph.shapes import infer
from deploy.graph.symbolic import Size

NODES = {
    "transpose": ("y = Transpose <perm = [2, 0, 1, 3]> (x)", {}),
    "heads": ("y = Reshape (x, a)", {"a": [2, 2, 3, 4, 5]}),
    "channels in front": ("y = Reshape (x, a)", {"a": [12, 4, 5]}),
    "all": ("y = Flatten <axis = 1> (x)", {}),
    "ones": ("y = Unsqueeze (x, a)", {"a": [0, 3]}),
    "concat": (
        "s = Slice (x, a, b, c)  y = Concat <axis = 1> (x, s)",
        {"a": [2], "b": [5], "c": [1]},
    ),
    "concat of others": ("y = Concat <axis = 2> (x, x)", {}),
    "slice": ("y = Slice (x, a, b, c, d)", {"a": [1, 0], "b": [6, 3], "c": [1, 2], "d": [2, 1]}),
    "slice from behind": ("y = Slice (x, a, b, c, a)", {"a": [-1], "b": [-100], "c": [1]}),
    "gather": ("y = Gather <axis = 1> (x, a)", {"a": [[3, -1], [0, 0]]}),
    "gather of others": ("y = Gather <axis = 3> (x, a)", {"a": [1, 2]}),
    "split": ("a, y = Split <axis = 1> (x, b)", {"b": [2, 4]}),
    "halves": ("a, y = Split <axis = 1, num_outputs = 2> (x)", {}),
}


def moved(model, ids):
    """What the rules make of labels ``ids`` of the input, node by node."""
    labels = Labels()
    labels.known[model.graph.inputs[0]] = ids
    for node in model.graph:
        if node.op_type in MOVES and node.inputs[0] in labels.known:
            found = MOVES[node.op_type](labels, node)
            if found is None:
                return None
            labels.known.update(zip(node.outputs, found, strict=False))
    return labels.known[model.graph.outputs[0]]


def built(parse, nodes, constants, sizes="2, 6, 4, 5"):
    arrays = {name: np.array(numbers) for name, numbers in constants.items()}
    model = parse(f"g (int64[{sizes}] x) => (int64[] y) {{ {nodes} }}", arrays)
    model.graph.outputs[0].shape = None
    return infer(model)


@pytest.mark.parametrize("name", NODES)
def test_against_onnx_runtime(parse, run, name):
    model = built(parse, *NODES[name])
    ids = np.arange(1, 7).reshape(1, 6, 1, 1)
    wide = np.ascontiguousarray(np.broadcast_to(ids, (2, 6, 4, 5)))
    (numbers,) = run(model, {"x": wide})
    found = moved(model, ids)
    assert found is not None
    assert (np.broadcast_to(found, numbers.shape) == numbers).all()
    assert all(numbers.shape[axis] == found.shape[axis] for axis in varying(found))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_reshape(data):
    """Against numpy, for any sizes and any axis along which labels lie."""
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=5))
    left, after = math.prod(sizes), []
    while left > 1:
        after.append(data.draw(st.sampled_from([d for d in range(2, left + 1) if left % d == 0])))
        left //= after[-1]
    pairs = segments([Size(s) for s in sizes], [Size(s) for s in after])
    assert sum(a.stop - a.start for a, _ in pairs) == len(sizes)
    assert sum(b.stop - b.start for _, b in pairs) == len(after)
    for a, b in pairs:
        assert math.prod(sizes[a]) == math.prod(after[b])


def test_free_sizes_stay_apart_from_channels():
    n, t, unknown = Size(1, ("n",)), Size(1, ("t",)), Size(1, ("?",))
    pairs = segments([n, t, Size(64)], [n, unknown, Size(4), Size(16)])
    assert pairs == [(slice(0, 1), slice(0, 1)), (slice(1, 2), slice(1, 2)), (slice(2, 3), slice(2, 4))]


def test_a_reshape_that_mixes_free_sizes_and_channels_is_not_followed(parse):
    model = built(parse, "y = Reshape (x, a)", {"a": [-1, 12]}, "n, 6, 4")
    assert moved(model, np.arange(1, 7).reshape(1, 6, 1)) is None


@pytest.mark.parametrize(("mode", "followed"), [("constant", True), ("reflect", False)])
def test_padding_puts_its_own_labels_beside_others(parse, mode, followed):
    model = built(parse, f'y = Pad <mode = "{mode}"> (x, a)', {"a": [0, 2, 0, 0, 0, 1, 3, 0]})
    found = moved(model, np.arange(1, 7).reshape(1, 6, 1, 1))
    assert (found is not None) == followed
    if found is not None:
        assert found.reshape(-1).tolist() == [-1, -1, 1, 2, 3, 4, 5, 6, -1]
