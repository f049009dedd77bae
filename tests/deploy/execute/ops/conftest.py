"""One operation in a graph of its own: in torch, in ONNX Runtime, its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from deploy.execute.ops import TABLE
from deploy.execute.program import Program


class OneNode:
    """The node with its inputs. Those in ``constants``, by position, are initializers, the others are fed."""

    def __init__(
        self,
        op: str,
        inputs: Sequence[np.ndarray | np.generic | None],
        constants: Sequence[int],
        outputs: int,
        opset: int,
        attributes: dict[str, object],
    ) -> None:
        self.arrays = {f"i{k}": np.asarray(x) for k, x in enumerate(inputs) if x is not None}
        values = {name: _value(name, array) for name, array in self.arrays.items()}
        self.fixed = [f"i{k}" for k in constants]
        self.fed = [name for name in values if name not in self.fixed]
        for name in self.fixed:
            values[name].const_value = ir.tensor(self.arrays[name], name=name)
        given = [values.get(f"i{k}") for k in range(len(inputs))]
        node = ir.node(op, given, attributes, num_outputs=outputs, name="node")
        for k, out in enumerate(node.outputs):
            out.name = f"o{k}"
        graph = ir.Graph(
            [values[name] for name in self.fed],
            node.outputs,
            nodes=[node],
            initializers=[values[name] for name in self.fixed],
            opset_imports={"": opset},
            name="g",
        )
        self.model = ir.Model(graph, ir_version=10)
        self.program = Program(graph, TABLE, opset)

    def torch(self, *given: torch.Tensor) -> list[torch.Tensor]:
        """Its outputs, for the node's own inputs or for those given in their place."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in self.arrays.items()}
        tensors |= dict(zip(self.fed, given, strict=False))
        double = any(t.dtype == torch.float64 for t in given)
        for name in self.fixed:
            fixed = tensors[name].double() if double and tensors[name].is_floating_point() else tensors[name]
            self.program.template[self.program.slots[name]] = fixed
        return self.program.run([tensors[name] for name in self.fed])

    def agrees(self, tolerance: float = 1e-5) -> None:
        """Assert that ONNX Runtime says the same."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        proto = ir.serde.serialize_model(self.model).SerializeToString()
        session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        wanted = session.run(None, {name: self.arrays[name] for name in self.fed})
        for found, want in zip(self.torch(), wanted, strict=True):
            array = found.detach().numpy()
            assert array.dtype == want.dtype
            assert array.shape == want.shape
            loose = tolerance if want.dtype.kind in "fc" else 0.0  # whole numbers agree exactly
            np.testing.assert_allclose(array, want, rtol=loose, atol=loose)

    def gradients(self) -> None:
        """Assert in float64 that the gradients of everything fed in floats are right."""
        given = [torch.tensor(self.arrays[name]) for name in self.fed]
        given = [t.double().requires_grad_() if t.is_floating_point() else t for t in given]

        def floats(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(t for t in self.torch(*tensors) if t.is_floating_point())

        tracked = [t.requires_grad for t in floats(*given)]  # gradcheck passes over those without
        assert tracked and all(tracked), "an output does not depend on what is fed"
        assert torch.autograd.gradcheck(floats, given)


def _value(name: str, array: np.ndarray) -> ir.Value:
    kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return ir.Value(name=name, type=kind, shape=ir.Shape(array.shape))


@pytest.fixture
def one_node() -> Callable[..., OneNode]:
    """``one_node(op, *inputs, constants=(), outputs=1, opset=21, **attributes)``."""

    def make(
        op: str,
        *inputs: np.ndarray | np.generic | None,
        constants: Sequence[int] = (),
        outputs: int = 1,
        opset: int = 21,
        **attributes: object,
    ) -> OneNode:
        return OneNode(op, inputs, constants, outputs, opset, attributes)

    return make
