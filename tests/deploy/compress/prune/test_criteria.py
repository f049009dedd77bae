"""Scores against sums written out by hand, and gradients against those of torch's own layers."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import torch
from net import Net
from torch.nn import functional

from deploy.compress.prune.criteria import drawn, probe, scaled, taylor, weighed
from deploy.data.dataset import Dataset, open_dataset
from deploy.errors import UsageError
from deploy.graph.groups import Family, Groups, find_groups
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.train.loss import Head

DRAW = np.random.default_rng(0)
ARRAYS = {
    name: DRAW.standard_normal(shape).astype(np.float32)
    for name, shape in (
        ("a", (6, 3, 3, 3)), ("ba", (6,)), ("b", (6, 6, 3, 3)), ("bb", (6,)), ("w", (4, 6)), ("bw", (4,)),
    )
}  # fmt: skip
ARRAYS["w"] *= 0.1  # a network that is not quite sure: all samples count


def _stream() -> ir.Model:
    """s = a(x), t = s + b(s), classes = w(mean of t): channels of s and t are tied and read twice."""
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[n,3,6,6] x) => (float[n,4] y) {
            s = Conv <pads=[1,1,1,1]> (x, a, ba)
            r = Conv <pads=[1,1,1,1]> (s, b, bb)
            t = Add (s, r)
            p = GlobalAveragePool (t)
            f = Flatten (p)
            y = Gemm <transB=1> (f, w, bw)
        }""",
        initializers=[ir.tensor(array, name=name) for name, array in ARRAYS.items()],
    )
    for index, node in enumerate(model.graph):
        node.name = f"n{index}"
    return infer(model)


STREAM = _stream()
GROUPS = find_groups(STREAM)


def _channel(family: Family, label: int, tensor: str) -> int:
    atom = next(atom for atom in family.atoms if atom.label == label)
    return int(next(p for p in atom.places if p.tensor == tensor and p.axis == 0).indices[0])


def _in_order(groups: Groups, scores: dict[int, float], tensor: str) -> np.ndarray:
    """Scores by the channel of ``tensor``."""
    family = next(f for f in groups.families if any(p.tensor == tensor for p in f.atoms[0].places))
    found = {_channel(family, a.label, tensor): scores[a.label] for a in family.atoms}
    return np.array([found[i] for i in range(len(found))])


@pytest.mark.parametrize("power", [1, 2])
def test_norms_take_every_number_once(power: int) -> None:
    parts = []
    for c in range(6):
        b = np.zeros((6, 6), bool)  # the row and the column of a weight that makes and reads the channel
        b[c] = b[:, c] = True
        numbers = (ARRAYS["a"][c], ARRAYS["ba"][c], ARRAYS["b"][b], ARRAYS["bb"][c], ARRAYS["w"][:, c])
        parts.append(sum((np.abs(n.astype(np.float64)) ** power).sum() for n in numbers) ** (1 / power))
    assert _in_order(GROUPS, weighed(STREAM, GROUPS, power), "a") == pytest.approx(parts)


def _samples(labels: bool, count: int = 40) -> Dataset:
    draw = np.random.default_rng(2)
    arrays = {"x": draw.standard_normal((count, 3, 6, 6)).astype(np.float32)}
    if labels:
        arrays["y"] = draw.integers(0, 4, count)
    return open_dataset(arrays, tensor_specs(STREAM.graph.inputs))


def test_taylor_is_activation_times_gradient_at_all_that_read_the_channel() -> None:
    given = next(_samples(True).batches(40))
    w = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    total = np.zeros(6)
    for x, y in zip(given.feeds["x"], given.targets[""], strict=True):
        s = functional.conv2d(torch.from_numpy(x)[None], w["a"], w["ba"], padding=1)
        first = s.clone().requires_grad_()
        t = s + functional.conv2d(first, w["b"], w["bb"], padding=1)
        second = t.detach().clone().requires_grad_()
        scores = functional.linear(second.mean((2, 3)), w["w"], w["bw"])
        loss = functional.cross_entropy(scores, torch.tensor([int(y)]))
        (at_second,) = torch.autograd.grad(loss, second)
        (at_first,) = torch.autograd.grad(t, first, at_second)
        change = (first * at_first).sum((0, 2, 3)) + (second * at_second).sum((0, 2, 3))
        total += change.detach().numpy().astype(np.float64) ** 2
    found = taylor(STREAM, GROUPS, _samples(True), 40, labels=True)
    assert _in_order(GROUPS, found, "a") == pytest.approx(total / 40, rel=1e-3)


def test_taylor_without_labels_is_the_curvature_of_the_divergence() -> None:
    """Against J' (diag(p) - p p') J of the answers by a fading of each channel, in float64."""
    samples = _samples(False, 320)
    found = _in_order(GROUPS, taylor(STREAM, GROUPS, samples, 320, labels=False), "a")
    x = torch.from_numpy(next(samples.batches(320)).feeds["x"]).double()
    w = {name: torch.from_numpy(array).double() for name, array in ARRAYS.items()}
    s = functional.conv2d(x, w["a"], w["ba"], padding=1)

    def answer(fade: torch.Tensor) -> torch.Tensor:
        t = s + functional.conv2d(s * fade[:, None, None], w["b"], w["bb"], padding=1)
        return functional.linear((t * fade[:, None, None]).mean((2, 3)), w["w"], w["bw"])

    here, step = torch.ones(6).double(), 1e-5 * torch.eye(6).double()
    slopes = torch.stack([(answer(here + d) - answer(here - d)) / 2e-5 for d in step], 2)
    p = torch.softmax(answer(here), 1)
    curved = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    exact = torch.einsum("nki,nkl,nli->ni", slopes, curved, slopes).mean(0).numpy()
    assert found == pytest.approx(exact, rel=0.4)


def test_what_is_sent_back_has_the_hessian_of_the_divergence() -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0, 0.5]]).reshape(1, 4, 1)
    p = torch.softmax(scores, 1).reshape(-1)
    signs = [torch.tensor(s).reshape(1, 4, 1) for s in itertools.product([-1.0, 1.0], repeat=4)]
    classes = Head("y", None, "classes", "y", False, 1)
    sent = torch.stack([probe(classes, scores, s).reshape(-1) for s in signs])
    assert torch.allclose(sent.T @ sent / 16, torch.diag(p) - torch.outer(p, p), atol=1e-6)
    each = Head("y", None, "each", "y", False, 1)
    chance = torch.sigmoid(scores).reshape(-1)
    sent = torch.stack([probe(each, scores, s).reshape(-1) for s in signs])
    assert torch.allclose(sent.T @ sent / 16, torch.diag(chance * (1 - chance)), atol=1e-6)


def test_scales_of_norms_and_norms_where_there_are_none(network: ir.Model) -> None:
    groups = find_groups(network)
    scores, without = scaled(network, groups)
    assert not without
    norms = [node for node in network.graph if node.op_type == "BatchNormalization"]
    first = next(f for f in groups.families if f.makes[0] == network.graph[0].name)
    tied = [n for n in norms if n.inputs[1].name in {p.tensor for p in first.atoms[0].places}]
    assert len(tied) == 2
    wanted = np.mean([np.abs(n.inputs[1].const_value.numpy()) for n in tied], 0)
    weight = network.graph[0].inputs[1].name
    assert _in_order(groups, dict(scores), weight) == pytest.approx(wanted)
    with pytest.raises(UsageError, match="no channel that can go passes a normalisation"):
        scaled(STREAM, GROUPS)


def test_channels_of_which_nothing_is_made_or_read_are_worth_nothing() -> None:
    n = Net(0)
    model = n.model(n.head(n.relu(n.conv(n.relu(n.conv(n.input("n", 3, 8, 8), 8)), 8))))
    first, second = (node for node in model.graph if node.op_type == "Conv")
    made, bias = first.inputs[1].const_value.numpy(), first.inputs[2].const_value.numpy()
    made[2], bias[2] = 0, 0
    read = second.inputs[1].const_value.numpy()
    read[:, 5] = 0
    groups = find_groups(model)
    for power in (1, 2):
        scores = _in_order(groups, dict(weighed(model, groups, power)), first.inputs[1].name)
        assert np.flatnonzero(scores == 0).tolist() == [2, 5]


def test_random_scores_follow_the_seed() -> None:
    assert drawn(GROUPS, 0) == drawn(GROUPS, 0) != drawn(GROUPS, 1)
