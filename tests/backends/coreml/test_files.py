"""``deploy run`` and ``deploy inspect`` of packages that no bundle describes, whoever wrote them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools")
from coreml_packages import saved
from PIL import Image

from backends.coreml.sdk import builder, mil, quiet, sdk
from deploy.cli import main

Deploy = Callable[..., tuple[int, str, str]]
W = np.random.default_rng(0).normal(0, 1, (3, 12)).astype(np.float32)
X = np.random.default_rng(1).normal(0, 1, (4, 12)).astype(np.float32)


@pytest.fixture
def deploy(capsys: pytest.CaptureFixture[str]) -> Deploy:
    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return saved(
        lambda mb, x: mb.linear(x=x, weight=W, name="scores"), {"x": (1, 12)}, tmp_path / "net.mlpackage"
    )


def test_arrays_go_through_one_by_one(deploy: Deploy, net: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=X)
    code, out, err = deploy("run", net, tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert code == 0 and "float32 [4, 3]" in out and "computed by: reference interpreter" in err
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["scores"], X @ W.T, rtol=1e-5, atol=1e-5)


def test_noise_is_the_same_each_time(deploy: Deploy, net: Path, tmp_path: Path) -> None:
    said = json.loads(deploy("run", net, "--random", 2, "--json")[1])
    assert said["file"] == str(net) and said["executed_by"] == "reference interpreter"
    x = np.concatenate([np.random.default_rng(seed).standard_normal((1, 12)) for seed in range(2)])
    powers = np.exp(x @ W.T)
    for sample, row in zip(said["predictions"], powers / powers.sum(1, keepdims=True), strict=True):
        assert sample["top"][0]["probability"] == pytest.approx(row.max(), rel=1e-4)
    code, _, err = deploy("run", net, tmp_path / "in.npz", "--random", 2)
    assert code == 2 and "--random stands in for data" in err


def test_noise_of_any_size_is_not_made(deploy: Deploy, net: Path) -> None:
    """What a package says of its inputs is read here, where nothing bounds memory."""

    def wide(message) -> None:
        message.description.input[0].type.multiArrayType.shape[:] = [1, 2**40]

    rewritten(net, wide)
    code, _, err = deploy("run", net, "--random", 1)
    assert code not in (0, 1) and ("are too many" in err or "1099511627776" in err)


def test_noise_is_counted_for_all_inputs(deploy: Deploy, tmp_path: Path) -> None:
    both = saved(
        lambda mb, x, y: mb.concat(values=(x, y), axis=1),
        {"x": (1, 12), "y": (1, 12)},
        tmp_path / "b.mlpackage",
    )
    most = 2 * 2**30 // (8 * 24) + 1
    code, _, err = deploy("run", both, "--random", most)
    assert code == 4 and "samples of noise for y: float32[1, 12] are too many" in err


def test_a_classifier_of_pictures_names_what_it_sees(deploy: Deploy, tmp_path: Path) -> None:
    """Twelve numbers of a picture in BGR, weighed; the package turns the colours and names the classes."""
    ct = sdk()
    image = ct.ImageType("x", (1, 3, 2, 2), color_layout=ct.colorlayout.BGR, scale=1 / 255)
    path = saved(
        lambda mb, x: mb.softmax(x=mb.linear(x=mb.reshape(x=x, shape=[1, 12]), weight=W), name="p"),
        {"x": (1, 3, 2, 2)}, tmp_path / "eyes.mlpackage", passes=True, inputs=[image],
        classifier_config=ct.ClassifierConfig(["cat", "dog", "über"]),
    )  # fmt: skip
    pixels = np.random.default_rng(2).integers(0, 256, (2, 2, 2, 3)).astype(np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    words = [word for number in range(2) for word in ("--image", tmp_path / f"{number}.png")]
    code, out, _ = deploy("run", path, *words, "--json")
    said = json.loads(out)
    assert code == 0 and said["arrays"]["classLabel"]["shape"] == [2]
    scores = pixels[..., ::-1].transpose(0, 3, 1, 2).reshape(2, 12) / 255 @ W.T
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    for guesses, want in zip(said["predictions"], chances, strict=True):
        best = guesses["top"][0]
        assert best["label"] == ("cat", "dog", "über")[int(want.argmax())]
        assert best["probability"] == pytest.approx(want.max(), rel=1e-4)
    code, out, _ = deploy("inspect", path)
    assert code == 0 and "cat, dog, über" in out and "bgr image" in out and "another program" in out


def test_names_of_classes_steer_no_terminal(deploy: Deploy, tmp_path: Path) -> None:
    path = saved(
        lambda mb, x: mb.softmax(x=x, name="p"), {"x": (1, 2)}, tmp_path / "p.mlpackage",
        classifier_config=sdk().ClassifierConfig(["red\x1b[31m", "kc\u202eab\nerror: none"]),
    )  # fmt: skip
    for words in (("run", path, "--random", 1), ("inspect", path)):
        code, out, _ = deploy(*words)
        assert code == 0 and not {"\x1b", "\u202e"} & set(out) and r"red\x1b[31m" in out
        assert not any(line.strip().startswith("error") for line in out.splitlines())


def test_what_is_kept_from_sample_to_sample(deploy: Deploy, tmp_path: Path) -> None:
    ct, mb, types = sdk(), builder(), mil().types
    specs = [mb.TensorSpec(shape=(1, 2)), mb.StateTensorSpec(shape=(1, 2), dtype=types.fp16)]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, total):
        new = mb.add(x=mb.read_state(input=total), y=mb.cast(x=x, dtype="fp16"))
        return mb.cast(x=mb.coreml_update_state(state=total, value=new), dtype="fp32", name="sum")

    with quiet():
        ct.convert(
            program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        ).save(str(tmp_path / "sum.mlpackage"))  # fmt: skip
    steps = np.array([[1, 2], [10, 20], [100, 200]], np.float32)
    np.savez(tmp_path / "in.npz", x=steps)
    code, _, err = deploy("run", tmp_path / "sum.mlpackage", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert code == 0 and "samples are a sequence: total" in err
    with np.load(tmp_path / "out.npz") as found:
        assert found["sum"].tolist() == steps.cumsum(0).tolist()


def test_a_sequence_goes_sample_by_sample_where_the_batch_is_free(deploy: Deploy, tmp_path: Path) -> None:
    ct, mb, types = sdk(), builder(), mil().types
    free = ct.RangeDim(1, 8)
    specs = [mb.TensorSpec(shape=(free.symbol, 2)), mb.StateTensorSpec(shape=(1, 2), dtype=types.fp16)]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, total):
        row = mb.reduce_sum(x=mb.cast(x=x, dtype="fp16"), axes=[0], keep_dims=True)
        new = mb.add(x=mb.read_state(input=total), y=row)
        return mb.cast(x=mb.coreml_update_state(state=total, value=new), dtype="fp32", name="sum")

    with quiet():
        ct.convert(
            program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
            inputs=[ct.TensorType(name="x", shape=(free, 2))], skip_model_load=True,
        ).save(str(tmp_path / "sum.mlpackage"))  # fmt: skip
    steps = np.array([[1, 2], [10, 20], [100, 200]], np.float32)
    np.savez(tmp_path / "in.npz", x=steps)
    code, _, err = deploy("run", tmp_path / "sum.mlpackage", tmp_path / "in.npz", "-o", tmp_path / "out.npz")
    assert code == 0, err
    with np.load(tmp_path / "out.npz") as found:
        assert found["sum"].tolist() == steps.cumsum(0).tolist()


def test_free_sizes_take_those_that_the_package_names(deploy: Deploy, tmp_path: Path) -> None:
    ct, mb = sdk(), builder()
    free = mil().get_new_symbol()

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, free))], opset_version=ct.target.iOS17)
    def program(x):
        return mb.reduce_sum(x=x, axes=[1], name="sum")

    shape = ct.EnumeratedShapes([(1, 7), (1, 5)], default=(1, 5))
    with quiet():
        ct.convert(
            program, source="milinternal", convert_to="mlprogram", inputs=[ct.TensorType("x", shape)],
            minimum_deployment_target=ct.target.iOS17, skip_model_load=True,
        ).save(str(tmp_path / "free.mlpackage"))  # fmt: skip
    assert deploy("run", tmp_path / "free.mlpackage", "--random", 2, "--json")[0] == 0
    np.savez(tmp_path / "in.npz", x=np.ones((1, 6), np.float32))
    code, _, err = deploy("run", tmp_path / "free.mlpackage", tmp_path / "in.npz")
    assert code == 4 and "'x' is [1, 6]" in err and "[1, 5]" in err


def rewritten(package: Path, change: Callable[[object], object]) -> None:
    file = next(package.rglob("*.mlmodel"))
    message = sdk().proto.Model_pb2.Model.FromString(file.read_bytes())
    change(message)
    file.write_bytes(message.SerializeToString())


def network(message) -> None:
    message.ClearField("mlProgram")
    message.neuralNetwork.layers.add().name = "old"


def pipeline(message) -> None:
    message.ClearField("mlProgram")
    message.pipeline.models.add()


def unknown(message) -> None:
    block = next(iter(message.mlProgram.functions["main"].block_specializations.values()))
    block.operations[-1].type = "custom_layer"


@pytest.mark.parametrize(
    ("change", "message", "remedy"),
    [
        (network, "net.mlpackage: it holds a neural network", "convert_to='mlprogram'"),
        (pipeline, "net.mlpackage: it holds a pipeline", "its parts are models of their own"),
        (unknown, "operations that are not evaluated: custom_layer", "run it on a Mac"),
    ],
)
def test_what_is_not_evaluated_is_named(
    deploy: Deploy, net: Path, change: Callable[[object], None], message: str, remedy: str
) -> None:
    rewritten(net, change)
    code, _, err = deploy("run", net, "--random", 1)
    assert code not in (0, 1) and message in err and remedy in err
    if change is unknown:  # the rest of it can be shown
        code, out, err = deploy("inspect", net)
        assert code == 0 and "does not open it: operations that it does not know: custom_layer" in out


def test_what_is_no_package(deploy: Deploy, tmp_path: Path) -> None:
    (tmp_path / "old.mlmodel").write_bytes(b"\x08\x01")
    (tmp_path / "made.mlmodelc").mkdir()
    (tmp_path / "empty.mlpackage").mkdir()
    said = {
        "old.mlmodel": "is a file, and programs are packages",
        "made.mlmodelc": "is compiled for a device",
        "empty.mlpackage": "'Manifest.json' is missing",
        "none.mlpackage": "no such package",
    }
    for name, text in said.items():
        code, _, err = deploy("run", tmp_path / name, "--random", 1)
        assert code not in (0, 1) and text in err and "hint: " in err, name
