"""Against the graph that is built without the channels, and counted."""

import numpy as np
import onnx_ir as ir
import pytest
from convolutional import CONVOLUTIONAL
from sequential import SEQUENTIAL

from deploy.compress.prune.amount import Predicted, counted, macs_of_sample
from deploy.errors import UsageError
from deploy.graph import cost
from deploy.graph.edit import weight_bytes
from deploy.graph.groups import find_groups
from deploy.graph.shrink import shrink

NETWORKS = {**CONVOLUTIONAL, **SEQUENTIAL}


@pytest.mark.parametrize("name", ["vgg", "resnext", "densenet", "mobilenet_v3", "vit_packed", "crnn", "bert"])
def test_what_is_left_is_that_of_the_smaller_graph(name: str) -> None:
    model = NETWORKS[name]()
    groups = find_groups(model)
    draw = np.random.default_rng(0)
    kept = np.array([draw.integers(1, len(family.atoms) + 1) for family in groups.families])
    gone = [a.label for f, n in zip(groups.families, kept, strict=True) for a in f.atoms[n:]]
    smaller = shrink(model, groups, gone)
    row = kept[None].astype(float)
    assert counted(model, groups, "parameters")(row) == pytest.approx([cost.parameters(smaller)])
    assert counted(model, groups, "macs")(row) == pytest.approx([macs_of_sample(smaller, groups)])
    assert counted(model, groups, "size")(row) == pytest.approx([weight_bytes(smaller)], rel=2e-3)


def test_latency_is_asked_of_the_smaller_graph_once_for_each_width() -> None:
    model = NETWORKS["vgg"]()
    groups = find_groups(model)
    asked: list[int] = []

    def latency(graph: ir.Model) -> float:
        asked.append(cost.parameters(graph))
        return 1e-6 * asked[-1]

    amount = Predicted(model, groups, latency)
    whole = [len(family.atoms) for family in groups.families]
    thin = [n // 2 for n in whole]
    rows = np.array([whole, thin, thin], float)
    exact = counted(model, groups, "parameters")(rows)
    assert amount(rows) == pytest.approx(1e-6 * exact)
    assert len(asked) == 2
    with pytest.raises(UsageError, match="nothing predicts the latency"):
        Predicted(model, groups, lambda graph: None)(rows)
