"""Arithmetic, one element at a time, with broadcasting."""

from __future__ import annotations

import torch

from deploy.execute.optable import OpTable

ops = OpTable()

ops.row("Add", torch.add)
ops.row("Relu", torch.relu)
