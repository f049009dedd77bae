from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(4, 3, 5)).astype(np.float32)
CLASSES = RNG.integers(0, 3, (4, 5))
WEIGHT = np.array([0.5, 1, 2], np.float32)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("attributes", [{}, {"ignore_index": 1}], ids=["all", "without 1"])
@pytest.mark.parametrize("op", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_onnxruntimes_with_gradients(one_node, op, reduction, weighted, attributes):
    inputs = [SCORES, CLASSES, *([WEIGHT] if weighted else [])]
    node = one_node(op, *inputs, constants=[2] if weighted else [], reduction=reduction, **attributes)
    node.agrees()
    node.gradients()


def test_classes_that_are_no_class_can_be_ignored(one_node):
    target = CLASSES.astype(np.int32)
    target[0] = -5
    one_node("SoftmaxCrossEntropyLoss", SCORES, target, ignore_index=-5).agrees()


def test_logarithms_of_probabilities(one_node):
    one_node("SoftmaxCrossEntropyLoss", SCORES, CLASSES, outputs=2).agrees()


def test_loss_alone_is_torchs_cross_entropy(one_node):
    (found,) = one_node("SoftmaxCrossEntropyLoss", SCORES[..., 0], CLASSES[..., 0]).torch()
    want = functional.cross_entropy(torch.from_numpy(SCORES[..., 0]), torch.from_numpy(CLASSES[..., 0]))
    assert torch.equal(found, want)
