"""What goes in and comes out, told by the first and last operations."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.graph.ends import joined, scores, table_rows
from deploy.graph.shapes import infer

TABLE = {"t": np.zeros((7, 4), np.float32), "p": np.zeros((5, 4), np.float32)}
LOOKS_UP = """g (int64[N,3] ids, float[N,3] x) => (float[N,3,4] y) <int64[1] last = {{-1}}> {{ {nodes} }}"""


@pytest.mark.parametrize(
    ("nodes", "rows"),
    [
        ("y = Gather(t, ids)", 7),
        ("a = Cast<to=6>(ids) b = Identity(a) y = Gather(t, b)", 7),
        ("a = Gather(t, ids) b = Gather(p, ids) y = Add(a, b)", 5),
        ("a = Add(ids, last) y = Gather(t, a)", None),
        ("a = Cast<to=1>(ids) y = Neg(a)", None),
    ],
)
def test_the_table_that_ids_look_up(nodes, rows, parse):
    used = {name: table for name, table in TABLE.items() if f"({name}," in nodes}
    model = parse(LOOKS_UP.format(nodes=nodes), used)
    ids, x = model.graph.inputs
    assert table_rows(ids) == rows
    assert table_rows(x) is None


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        ("y = Softmax(x)", "probabilities"),
        ("a = Softmax(x) b = Flatten(a) y = Identity(b)", "probabilities"),
        ("y = LogSoftmax(x)", "log_probabilities"),
        ("y = Sigmoid(x)", "each"),
        ("y = Neg(x)", "unknown"),
        ("a = Softmax(x) y = Neg(a)", "unknown"),
    ],
)
def test_what_scores_are(nodes, kind, parse):
    model = parse(f"g (float[N,3] x) => (float[N,3] y) {{ {nodes} }}")
    assert scores(model.graph.outputs[0]) == kind


BOXES = """g (float[N,4,6] b, float[N,3,6] c) => (float y)
    <int64[3] rows = {{-1, 7, 6}}, int64[3] long = {{-1, 6, 7}}, int64[2] flat = {{-1, 42}}> {{
    box = Mul(b, b) s = Sigmoid(c) {nodes}
}}"""


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        ("y = Concat<axis=1>(box, s)", (1, (4, 3))),
        ("y = Concat<axis=-2>(box, s)", (1, (4, 3))),
        ("a = Concat<axis=1>(box, s) y = Transpose<perm=[0,2,1]>(a)", (2, (4, 3))),
        ("a = Concat<axis=1>(box, s) t = Transpose<perm=[0,2,1]>(a) y = Reshape(t, long)", (2, (4, 3))),
        ("a = Concat<axis=1>(box, s) y = Reshape(a, rows)", (1, (4, 3))),
        ("a = Concat<axis=1>(box, s) d = Concat<axis=1>(box, s) y = Concat<axis=2>(a, d)", (1, (4, 3))),
        ("a = Concat<axis=1>(box, s) y = Reshape(a, flat)", None),
        ("a = Concat<axis=1>(box, s) y = Neg(a)", None),
        ("d = Mul(c, c) y = Concat<axis=1>(box, d)", None),
        ("y = Concat<axis=0>(box, box)", None),
        ("y = Identity(box)", None),
    ],
)
def test_outputs_that_join_numbers_of_several_kinds(nodes, found, parse):
    model = infer(parse(BOXES.format(nodes=nodes), {}))
    assert joined(model) == ({} if found is None else {"y": found})
