"""What a channel is worth: a score for every atom, over all that is tied in it.

    l1, l2      the norm of all its weights together, in every layer that makes, follows or reads it
    batch_norm  the sizes of its normalisations' scales (Liu et al., "Network Slimming", arXiv:1708.06519)
    taylor      mean over batches of (sum of gradient * weight)^2 over the weights that read it
    random      numbers drawn by the seed

The sum over readers in ``taylor`` is the first-order change of the loss when the channel vanishes for all of
them; it equals the sum of gradient * activation over samples and places (Molchanov et al., arXiv:1906.10771).
Without labels the gradient is that of the answers themselves, sent back at random so that its square is the
Fisher matrix in expectation: the score is then the second-order change of the answers (Theis et al.,
arXiv:1801.05787), for that of the first order is zero.

Channels of which nothing is made, or that nobody reads (all weights there are zero), are worth nothing
whatever the rest of them weighs. ``obs`` is no score: what a channel costs depends on those gone before it.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.adapter.batching import fixed_batch
from deploy.data.dataset import Batch, Dataset
from deploy.errors import DataError, UsageError
from deploy.execute.module import GraphModule, weight_names
from deploy.graph.edit import constant
from deploy.graph.groups import Atom, Groups, Place
from deploy.graph.summary import tensor_specs
from deploy.spec.finetune import Finetune
from deploy.train.loader import number
from deploy.train.loss import Head, heads, make_task
from deploy.train.score import tensors

Scores = Mapping[int, float]
"""By the label of every atom; what scores lowest goes first."""

_NORMS = ("BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization")
_BATCHES = 64
"""Of samples, for which gradients are squared one by one."""


def weighed(model: ir.Model, groups: Groups, power: int) -> Scores:
    """The L1 (``power`` 1) or L2 (2) norm of all weights that go with each atom, each number once."""
    sums = _sums(model, groups, lambda array: np.abs(array.astype(np.float64)) ** power)
    found = {}
    for label, parts in sums.items():
        makes = sum(value for role, value in parts if role != "reads")
        reads = sum(value for role, value in parts if role == "reads")
        roles = {role for role, _ in parts}
        dead = (roles != {"reads"} and not makes) or ("reads" in roles and not reads)
        found[label] = 0.0 if dead else float((makes + reads) ** (1 / power))
    return found


def scaled(model: ir.Model, groups: Groups) -> tuple[Scores, tuple[str, ...]]:
    """The absolute scales of the normalisations in each atom, a mean over them, and the families without any,
    which are judged by their L2 norms. Raises UsageError where there is no normalisation at all."""
    scales = {
        node.inputs[1].name
        for node in model.graph
        if node.op_type in _NORMS and len(node.inputs) > 1 and node.inputs[1] is not None
    }
    norms = weighed(model, groups, 2)
    found: dict[int, float] = {}
    without: list[str] = []
    for family in groups.families:
        places = {a.label: [p for p in a.places if p.tensor in scales] for a in family.atoms}
        if not any(places.values()):
            without.append(family.name)
        for label, own in places.items():
            parts = [float(np.abs(_slice(model, place)).mean()) for place in own]
            found[label] = float(np.mean(parts)) if parts else norms[label]
    if groups.families and len(without) == len(groups.families):
        raise UsageError(
            'prune: criterion = "batch_norm", but no channel that can go passes a normalisation',
            hint='choose "l2" or "obs"; where batch norm was folded, [[recipe]] finetune puts it back with '
            'batch_norm = "insert"',
        )
    return found, tuple(without)


def drawn(groups: Groups, seed: int) -> Scores:
    """Between 0 and 1, by family, whatever other families there are."""
    found: dict[int, float] = {}
    for family in groups.families:
        rng = np.random.default_rng([seed, zlib.crc32(family.name.encode())])
        labels = [atom.label for atom in family.atoms]
        found |= dict(zip(labels, rng.random(len(labels)).tolist(), strict=True))
    return found


def taylor(
    model: ir.Model,
    groups: Groups,
    samples: Dataset,
    limit: int,
    *,
    labels: bool,
    seed: int = 0,
) -> Scores:
    """By the gradient of the loss on the first ``limit`` samples, of their labels or of the answers.

    Raises DataError where labels do not fit or outputs are not finite.
    """
    atoms = groups.atoms
    learned = weight_names(model)
    places = {label: _counting(atom, learned) for label, atom in atoms.items()}
    wanted = {place.tensor for own in places.values() for place in own}
    module = GraphModule(model, trainable=wanted.__contains__)
    weights = module.named_weights()
    slices = _slices(places)
    total = dict.fromkeys(atoms, 0.0)
    count, loss = 0, _loss(module, samples, labels, seed)
    size = fixed_batch(tensor_specs(model.graph.inputs)) or max(1, min(limit, len(samples)) // _BATCHES)
    for batch in samples.batches(size, limit=limit):
        if len(batch) < size and count:
            break
        with torch.enable_grad():
            value = loss(batch)
        if not bool(torch.isfinite(value)):
            raise DataError(
                f"{samples.origin}: the loss is {value.item()} on samples from {batch.ids[0]} on",
                hint="check the normalisation of the data and the model",
            )
        count += 1
        if not value.requires_grad:
            continue
        found: Sequence[Tensor | None] = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        first: dict[int, float] = defaultdict(float)
        for (name, weight), gradient in zip(weights.items(), found, strict=True):
            if gradient is None:
                continue
            product = gradient * weight.detach()
            for axis, owners, ids in slices[name]:
                along = product.movedim(axis, 0).reshape(product.shape[axis], -1).sum(1).double().numpy()
                sums = np.bincount(ids, along[owners])
                for label in np.unique(ids).tolist():
                    first[label] += float(sums[label])
        for label, change in first.items():
            total[label] += change**2
    return {label: value / max(count, 1) for label, value in total.items()}


def _counting(atom: Atom, learned: set[str]) -> list[Place]:
    """Where the channel is read, else where it is made: heads' inner sizes are read by no weight."""
    own = [place for place in atom.places if place.tensor in learned]
    return [place for place in own if place.role == "reads"] or own


def _slices(places: Mapping[int, Sequence[Place]]) -> dict[str, list[tuple[int, np.ndarray, np.ndarray]]]:
    """By weight and axis: the indices that belong to atoms, and the labels of these."""
    found: dict[str, dict[int, list[tuple[np.ndarray, int]]]] = defaultdict(lambda: defaultdict(list))
    for label, own in places.items():
        for place in own:
            found[place.tensor][place.axis].append((place.indices, label))
    return {
        name: [
            (
                axis,
                np.concatenate([indices for indices, _ in parts]),
                np.concatenate([np.full(indices.size, label) for indices, label in parts]),
            )
            for axis, parts in axes.items()
        ]
        for name, axes in found.items()
    }


def _loss(module: GraphModule, samples: Dataset, labels: bool, seed: int) -> Callable[[Batch], Tensor]:
    """From samples to what is differentiated."""
    step = Finetune()
    first = next(samples.batches(fixed_batch(tensor_specs(module.model.graph.inputs)) or 1))
    device = torch.device("cpu")
    with torch.no_grad():
        shapes = {n: tuple(v.shape) for n, v in module(tensors(first.feeds, device)).items()}
    found = heads(module.model, shapes, first.targets if labels else {}, step)
    read = list(dict.fromkeys(head.read for head in found))
    if labels:
        task = make_task(found, step, module.program.outputs, None)

        def by_labels(batch: Batch) -> Tensor:
            results = module(tensors(batch.feeds, device), [n for n in read if n not in shapes])
            return task(results, tensors(batch.targets, device))

        return by_labels

    def by_answers(batch: Batch) -> Tensor:
        results = module(tensors(batch.feeds, device), [n for n in read if n not in shapes])
        parts = []
        for index, head in enumerate(found):
            scores = head.scores(results)
            generator = torch.Generator().manual_seed(number(seed, index, int(batch.ids[0])))
            signs = torch.randint(0, 2, scores.shape, generator=generator) * 2.0 - 1
            parts.append((probe(head, scores.detach(), signs) * scores).sum() / len(scores) ** 0.5)
        return torch.stack(parts).sum()

    return by_answers


def probe(head: Head, scores: Tensor, signs: Tensor) -> Tensor:
    """What is sent back from ``scores`` so that its outer product is, on average over random ``signs``, the
    Hessian of the divergence from them: diag(p) - p p' of classes."""
    sent: Tensor
    if head.kind == "values":
        sent = signs * (2 / scores.square().mean().clamp_min(1e-12) / scores[0].numel()).sqrt()
    elif head.kind == "each":
        chance = torch.sigmoid(scores)
        sent = signs * (chance * (1 - chance)).sqrt()
    else:
        chance = torch.softmax(scores, 1)
        root = chance.sqrt() * signs
        positions = scores[0].numel() // scores.shape[1]
        sent = (root - chance * root.sum(1, keepdim=True)) / positions**0.5
    return sent


def _sums(
    model: ir.Model, groups: Groups, of: Callable[[np.ndarray], np.ndarray]
) -> dict[int, list[tuple[str, float]]]:
    """By atom: role and the sum over each constant that training changes, a number in two places once."""
    learned = weight_names(model)
    found: dict[int, list[tuple[str, float]]] = {label: [] for label in groups.atoms}
    tables: dict[tuple[str, int], np.ndarray] = {}
    for label, atom in groups.atoms.items():
        crossing: dict[str, list[Place]] = defaultdict(list)
        for place in atom.places:
            if place.tensor not in learned:
                continue
            key = place.tensor, place.axis
            if key not in tables:
                array = of(_array(model, place.tensor))
                tables[key] = np.moveaxis(array, place.axis, 0).reshape(array.shape[place.axis], -1).sum(1)
            found[label].append((place.role, float(tables[key][place.indices].sum())))
            crossing[place.tensor].append(place)
        for name, both in crossing.items():
            if len(both) == 2:
                array = of(_array(model, name))
                one, other = both
                twice = np.take(np.take(array, one.indices, one.axis), other.indices, other.axis)
                found[label].append((other.role, -float(twice.sum())))
    return found


def _array(model: ir.Model, name: str) -> np.ndarray:
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array


def _slice(model: ir.Model, place: Place) -> np.ndarray:
    return np.take(_array(model, place.tensor), place.indices, place.axis)
