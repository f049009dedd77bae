"""A graph as a torch module: its weights are the graph's, and the file is what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.errors import BackendError, UnsupportedError, UsageError
from deploy.execute.module import GraphModule, weight_names
from deploy.execute.reference import Session
from deploy.frontend.onnx_file import read, write

GENERATOR = np.random.default_rng(0)
NET = """<ir_version: 10, opset_import: ["": 21]> g (float[n, 3] x) => (float[n, 2] y) {
    [scaled] a = Mul (x, std)
    [hidden] b = MatMul (a, w)
    [biased] c = Add (b, bias)
    [halved] d = Mul (c, half)
    [act] e = Relu (d)
    [out] y = Gemm (e, v, bias2)
}"""


def model(text: str = NET, **arrays: np.ndarray | ir.TensorProtocol) -> ir.Model:
    given = arrays or {
        "std": np.array([1.0, 2.0, 3.0], np.float32),
        "w": GENERATOR.standard_normal((3, 4)).astype(np.float32),
        "bias": GENERATOR.standard_normal(4).astype(np.float32),
        "half": np.array(0.5, np.float32),
        "v": GENERATOR.standard_normal((4, 2)).astype(np.float32),
        "bias2": GENERATOR.standard_normal(2).astype(np.float32),
    }
    tensors = [a if isinstance(a, ir.TensorProtocol) else ir.tensor(a, name=n) for n, a in given.items()]
    made = ir.from_onnx_text(text, initializers=tensors)
    for value in made.graph.initializers.values():
        value.type, value.shape = ir.TensorType(value.const_value.dtype), value.const_value.shape
    return made


def test_weights_are_told_from_formulas_and_normalisation() -> None:
    assert weight_names(model()) == {"w", "bias", "v", "bias2"}
    assert set(GraphModule(model()).named_weights()) == {"w", "bias", "v", "bias2"}
    assert set(GraphModule(model(), trainable=lambda n: n == "v").named_weights()) == {"v"}


def test_what_is_trained_is_what_is_saved(tmp_path: Path) -> None:
    given = model()
    module = GraphModule(given)
    x = torch.randn(5, 3)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module({"x": x})["y"].square().sum().backward()
    optimizer.step()
    write(module.model, tmp_path / "trained.onnx")
    with Session(tmp_path / "trained.onnx") as session, torch.no_grad():
        np.testing.assert_allclose(
            session.run({"x": x.numpy()})["y"], module({"x": x})["y"].numpy(), rtol=1e-5, atol=1e-6
        )
    stored = read(tmp_path / "trained.onnx").model.graph.initializers
    for name, parameter in module.named_weights().items():
        np.testing.assert_array_equal(stored[name].const_value.numpy(), parameter.detach().numpy())
        assert not np.array_equal(
            given.graph.initializers[name].const_value.numpy(), parameter.detach().numpy()
        )


def test_nothing_trained_is_nothing_changed(tmp_path: Path) -> None:
    given = model()
    write(given, tmp_path / "before.onnx")
    write(GraphModule(given).model, tmp_path / "after.onnx")
    assert (tmp_path / "before.onnx").read_bytes() == (tmp_path / "after.onnx").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.double(),
        lambda module: module.half(),
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to("cpu", torch.float64),
    ],
)
def test_another_type_is_refused_and_nothing_done(
    change: Callable[[GraphModule], object], tmp_path: Path
) -> None:
    """Types stand in the graph too, whose inputs and casts would go on saying float32."""
    module = GraphModule(model())
    write(module.model, tmp_path / "before.onnx")
    with pytest.raises(UsageError, match=r"'\w+' is torch.float32, not torch"):
        change(module)
    write(module.model, tmp_path / "after.onnx")
    assert (tmp_path / "before.onnx").read_bytes() == (tmp_path / "after.onnx").read_bytes()
    assert module({"x": torch.randn(2, 3)})["y"].dtype == torch.float32


def test_what_moves_stays_bound() -> None:
    module = GraphModule(model()).float().to("cpu", torch.float32)._apply(torch.clone)
    with torch.no_grad():
        module.named_weights()["v"].zero_()
    assert not module.model.graph.initializers["v"].const_value.numpy().any()


def test_inner_values_are_given_by_name() -> None:
    module = GraphModule(model())
    x = torch.randn(4, 3)
    found = module({"x": x}, want=["e", "a"])
    assert list(found) == ["y", "e", "a"]
    torch.testing.assert_close(found["a"], x * torch.tensor([1.0, 2.0, 3.0]))
    assert (found["e"] >= 0).all()


def test_constants_of_other_types_are_kept_as_they_are_stored(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[4] x) => (float[4] y, float[4] z) {
        [cast] a = Cast <to = 1> (half)  [add] b = Add (x, a)
        [deq] y = DequantizeLinear (codes, s)  [same] z = Identity (b)
    }"""
    given = model(
        text,
        half=np.array([1, 2, 3, 4], ml_dtypes.bfloat16),
        codes=ir.tensor(np.array([-8, 7, 0, 1], ml_dtypes.int4), name="codes"),
        s=np.array(0.5, np.float32),
    )
    module = GraphModule(given)
    found = module({"x": torch.zeros(4)})
    assert found["y"].tolist() == [-4.0, 3.5, 0.0, 0.5]
    assert found["z"].tolist() == [1.0, 2.0, 3.0, 4.0]
    kinds = {n: v.const_value.dtype for n, v in module.model.graph.initializers.items()}
    assert kinds == {"half": ir.DataType.BFLOAT16, "codes": ir.DataType.INT4, "s": ir.DataType.FLOAT}


def test_scales_of_quantization_learn() -> None:
    text = """<ir_version: 10, opset_import: ["": 21]> g (float[n, 4] x) => (float[n, 4] y) {
        [q] a = QuantizeLinear (x, s, z)  [d] b = DequantizeLinear (a, s, z)  [m] y = MatMul (b, w)
    }"""
    module = GraphModule(
        model(text, s=np.array(0.1, np.float32), z=np.array(0, np.int8), w=np.eye(4, dtype=np.float32))
    )
    assert set(module.named_weights()) == {"s", "w"}
    module({"x": torch.randn(8, 4)})["y"].square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in module.named_weights().items()}
    assert all(g is not None and torch.isfinite(g).all() and g.any() for g in gradients.values())


def test_every_unknown_operation_is_listed() -> None:
    text = """<ir_version: 10, opset_import: ["": 21, "custom": 1]> g (float[n, 3] x) => (float[n, 3] y) {
        [one] a = custom.First (x)  [two] b = Relu (a)  [three] y = custom.Second (b)
    }"""
    with pytest.raises(UnsupportedError) as caught:
        GraphModule(ir.from_onnx_text(text))
    assert "no kernel for 2 nodes" in caught.value.message
    assert "custom.First 'one'" in caught.value.message and "custom.Second 'three'" in caught.value.message


def test_the_node_that_fails_is_named() -> None:
    with pytest.raises(BackendError, match="Mul 'scaled' failed in torch"):
        GraphModule(model())({"x": torch.randn(2, 5)})
