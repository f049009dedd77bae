"""A graph as a differentiable torch module whose weights are the graph's own.

The graph is the model: training the module trains the graph. Weights become parameters, all other constants
buffers, and the graph's initializers are made to lie over the same memory, so that there is nothing to write
back: to save the graph is to save what was learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from deploy.errors import UsageError
from deploy.execute.ops import TABLE
from deploy.execute.ops.cast import TORCH_TYPES
from deploy.execute.ops.generate import from_tensor
from deploy.execute.optable import Mode
from deploy.execute.program import Program
from deploy.graph.edit import constant, constant_tensor

_WEIGHTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "DeformConv": (1, 3), "Gemm": (0, 1, 2), "MatMul": (0, 1),
    "Einsum": (0, 1), "BatchNormalization": (1, 2), "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2), "RMSNormalization": (1,), "PRelu": (1,),
    "Gather": (0,), "LSTM": (1, 2, 3, 7), "GRU": (1, 2, 3), "RNN": (1, 2, 3),
    "QuantizeLinear": (0, 1), "DequantizeLinear": (1,), "Exp": (0,),
}  # fmt: skip
"""Where an operation reads what training changes."""

_ARITHMETIC = ("Add", "Mul", "Sub", "Div")
"""A constant here is a weight (a bias, a position, a layer's scale) if it is no lone number, which is part of
a formula, and does not stand next to an input of the model, where it is a normalisation."""

_STATISTICS = {"BatchNormalization": (3, 4)}


class GraphModule(nn.Module):
    """``model`` as a module. The graph given is not touched: :attr:`model`, a copy, is the one that learns.

    ``trainable`` says by name which weights become parameters, all of them if None. It begins in ``eval()``,
    where it computes what the graph says; after ``train()`` batch norm follows :attr:`mode`. Raises
    UnsupportedError listing every node that has no kernel.
    """

    def __init__(self, model: ir.Model, *, trainable: Callable[[str], bool] | None = None) -> None:
        super().__init__()
        self.model = model.clone()
        self.mode = Mode()
        self.program = Program(self.model.graph, TABLE, self.model.opset_imports[""], self.mode)
        weights = weight_names(self.model)
        self._places: dict[str, str] = {}
        for index, (name, value) in enumerate(self.model.graph.initializers.items()):
            place, stored = f"t{index}", constant_tensor(value)
            if stored is None:
                raise ValueError(f"initializer '{name}' has no value")
            tensor = _in_torch(stored)
            if not isinstance(tensor, Tensor):  # text: what torch has no type for is nothing to train or move
                self.program.template[self.program.slots[name]] = tensor
                continue
            if name in weights and tensor.is_floating_point() and (trainable is None or trainable(name)):
                self.register_parameter(place, nn.Parameter(tensor))
            else:
                self.register_buffer(place, tensor)
            self._places[name] = place
        self._bind()
        self.eval()

    def train(self, mode: bool = True) -> GraphModule:
        """As nn.Module; kernels learn of it through :attr:`mode`."""
        self.mode.training = mode
        super().train(mode)
        return self

    def _bind(self) -> None:
        """Let the program read, and the graph hold, the tensors that the module has now."""
        for name, place in self._places.items():
            tensor: Tensor = getattr(self, place)
            self.program.template[self.program.slots[name]] = tensor
            value = self.model.graph.initializers[name]
            if value.dtype in TORCH_TYPES:  # codes of less than eight bits stay as they were stored
                value.const_value = TorchTensor(tensor.data, name=name)

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> GraphModule:
        """What to(), half(), double() and their kin go through. Raises UsageError, with nothing done, where
        it would change a type: types stand in the graph, in its inputs, casts and formulas too."""
        for name, place in self._places.items():
            before: Tensor = getattr(self, place)
            after = fn(before.detach()[:0] if before.ndim else before.detach()).dtype
            if after != before.dtype:
                raise UsageError(
                    f"a graph computes in the types that it is written in: '{name}' is {before.dtype}, "
                    f"not {after}",
                    hint="move it with to(device); train in half precision under torch.autocast",
                )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # moving to a device makes new buffers
        self._bind()
        return self

    def forward(self, feeds: Mapping[str, Tensor], want: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs by name, and the inner values named in ``want``.

        Raises BackendError naming the node that failed.
        """
        given = [feeds[name] for name in self.program.inputs]
        results = self.program.run(given, want=want)
        return {
            name: cast(Tensor, found)
            for name, found in zip((*self.program.outputs, *want), results, strict=True)
        }

    def named_weights(self) -> dict[str, nn.Parameter]:
        """The parameters by the graph's names."""
        tensors = {name: getattr(self, place) for name, place in self._places.items()}
        return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}


def _in_torch(stored: ir.TensorProtocol) -> Tensor | np.ndarray:
    """A copy: the graph given keeps its own. Codes of less than eight bits become bytes."""
    found = from_tensor(stored)
    if isinstance(found, Tensor) or found.dtype.kind in "OUS":
        return found
    return torch.from_numpy(found.astype(np.uint8 if stored.dtype.name.startswith("U") else np.int8))


def weight_names(model: ir.Model) -> set[str]:
    """The initializers that training changes, by where they are read; running statistics are none."""
    found: set[str] = set()
    statistics: set[str] = set()
    inputs = {value.name for value in model.graph.inputs}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        places = _WEIGHTS.get(node.op_type, ())
        if node.op_type in _ARITHMETIC and not inputs & {v.name for v in node.inputs if v is not None}:
            places = (0, 1)
        for place in places:
            value = node.inputs[place] if place < len(node.inputs) else None
            if value is not None and value.name is not None and value.name in model.graph.initializers:
                array = constant(value)
                if array is not None and (node.op_type not in _ARITHMETIC or array.size > 1):
                    found.add(value.name)
        for place in _STATISTICS.get(node.op_type, ()):
            value = node.inputs[place]
            if value is not None and value.name is not None:
                statistics.add(value.name)
    return found - statistics
