"""What goes in and comes out, told by the first and last operations."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.graph.ends import scores, table_rows

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
