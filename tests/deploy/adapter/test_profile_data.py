"""What our profiles say: one vocabulary, every fact with a source to look up; and every device builds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.adapter.discover import backend_names
from deploy.adapter.profiles import all_profiles, load_profile, profile_names
from deploy.bundle.read import load_plan
from deploy.pipeline import build
from deploy.spec.profile import Fact, Figure, Profile, QuantRules
from deploy.stages.target import find_target

ROOT = Path(__file__).parents[3]

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")

VOCABULARY = {
    "precision": dict.fromkeys(PRECISIONS, "flag"),
    "memory": {
        "size": "GB",
        "visible": "MB",
        "flash": "MB",
        "bandwidth": "GB/s",
        "bandwidth_super": "GB/s",
        "l1": "KB",
        "l2": "KB|MB",
        "l3": "MB",
    },
    "hardware": {
        "soc": "text",
        "cpu": "text",
        "cores": "count",
        "clock": "GHz",
        "vector": "bit",
        "dot_product": "flag",
        "matrix_int8": "flag",
        "npu": "text",
        "npu_peak": "TOPS",
        "compute_capability": "text",
        "multiprocessors": "count",
        "cuda_cores": "count",
        "tensor_cores": "count",
        "gpu_clock": "MHz",
        "int8_dense": "TOPS",
        "int8_sparse": "TOPS",
        "int8_sparse_super": "TOPS",
        "int8_total": "TOPS",
        "fp8_dense": "TFLOPS",
        "fp16_dense": "TFLOPS",
        "fp16_sparse": "TFLOPS",
        "tf32_dense": "TFLOPS",
        "fp32_peak": "TFLOPS",
        "fp32_macs_per_cycle": "count",
        "int8_macs_per_cycle": "count",
        "sparsity_2_4": "flag",
        "dla": "flag",
        "dla_int8_sparse": "TOPS",
        "dla_sram": "MiB",
        "power": "W",
        "power_modes": "text",
        "jetpack": "text",
    },
}
"""Key -> what its value is: ``flag``, ``text``, ``count``, or a number of that unit; a remark may follow."""

PROMISED = {
    "android": ["tflite", "ort"],
    "galaxy-s24": ["tflite", "ort"],
    "graviton": ["ort", "tflite"],
    "iphone13": ["coreml", "ort"],
    "iphone15": ["coreml", "ort"],
    "jetson-xavier-nx": ["tensorrt"],
    "mac-m2": ["coreml", "ort"],
    "microcontroller": ["tflite"],
    "nvidia-rtx4090": ["tensorrt"],
    "pixel8": ["tflite", "ort"],
}
PHONES = ("android", "galaxy-s24", "iphone13", "iphone15", "pixel8")

devices = pytest.mark.parametrize("profile", [p for p in all_profiles() if p.runtime], ids=lambda p: p.name)


def facts(profile: Profile) -> Iterator[tuple[str, str, Fact]]:
    """Every fact with its table and key."""
    for table in VOCABULARY:
        for key, fact in getattr(profile, table).items():
            yield table, key, fact


def rules_of(profile: str, runtime: str) -> QuantRules:
    rules = load_profile(profile).runtime_named(runtime).quant
    assert rules is not None
    return rules


@devices
def test_facts_keep_to_one_vocabulary(profile: Profile) -> None:
    for table, key, fact in facts(profile):
        known = VOCABULARY[table]
        assert key in known, f"[{table}] {key}: use one of {', '.join(known)}, or add it there"
        if not isinstance(fact, Figure) or fact.value is False:
            continue
        kind, value = known[key], fact.value
        if kind in ("flag", "text", "count"):
            assert type(value) is {"flag": bool, "text": str, "count": int}[kind], f"{key} = {value!r}"
        else:
            assert not isinstance(value, bool), f"{key} = {value!r}"
            assert re.match(rf"({kind})(?![A-Za-z/])", fact.unit), f"{key}: '{fact.unit}' is not {kind}"


@devices
def test_what_is_not_known_is_said(profile: Profile) -> None:
    assert set(profile.precision) == set(PRECISIONS)
    assert {"size", "bandwidth"} <= set(profile.memory)
    assert "sparsity_2_4" in profile.hardware


@devices
def test_every_statement_can_be_looked_up_and_none_is_of_the_future(profile: Profile) -> None:
    figures = [fact for _, _, fact in facts(profile) if isinstance(fact, Figure)]
    stated = [(figure.source, figure.date) for figure in figures]
    for runtime in profile.runtime:
        stated.append((runtime.source, runtime.date))
        if runtime.quant:
            stated.append((runtime.quant.source, runtime.quant.date))
        if runtime.sparsity and isinstance(runtime.sparsity.gain, Figure):
            stated.append((runtime.sparsity.gain.source, runtime.sparsity.gain.date))
    for source, when in stated:
        assert source.startswith("measured: ") or re.search(r"https?://[^/ ]+\.[^/ ]+/", source), source
        assert when <= date.today()


@pytest.mark.parametrize(("name", "runtimes"), PROMISED.items())
def test_the_promised_devices_prefer_their_own_runtime(name: str, runtimes: list[str]) -> None:
    assert [runtime.name for runtime in load_profile(name).runtime] == runtimes


def test_a_short_name_belongs_to_one_device() -> None:
    shorts = {"iphone": "iphone15", "mac": "mac-m2", "pixel": "pixel8", "mcu": "microcontroller"}
    for short, name in (shorts | {"rtx4090": "nvidia-rtx4090", "xavier-nx": "jetson-xavier-nx"}).items():
        assert load_profile(short).name == name
    words = [word for profile in all_profiles() for word in (profile.name, *profile.aliases)]
    assert len(set(words)) == len(words)


# --- rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["android", "pixel8", "galaxy-s24", "microcontroller"])
def test_tflite_gets_what_its_specification_asks_for(name: str) -> None:
    rules = rules_of(name, "tflite")
    assert (rules.activation, rules.symmetric_activation, rules.weight_bits) == ("int8", False, 8)
    assert (rules.bias, rules.scale, rules.per_channel) == ("int32", "float32", True)
    assert not rules.float_output, "its integer kernels write integers"
    fixed = {op: (output.scale, output.zero_point) for op, output in rules.fixed_output.items()}
    assert fixed == {
        "Softmax": (1 / 256, -128),
        "Sigmoid": (1 / 256, -128),
        "Tanh": (1 / 128, 0),
        "LogSoftmax": (16 / 256, 127),
    }
    for op in ("Softmax", "Sigmoid"):
        low, high = (fixed[op][0] * (code - fixed[op][1]) for code in (-128, 127))
        assert low == 0 and 1 - 1 / 256 <= high < 1, "the codes cover what the operation can yield"


def test_xnnpack_keeps_float_what_would_split_its_graph_and_a_microcontroller_has_no_float() -> None:
    phone, micro = rules_of("android", "tflite"), rules_of("microcontroller", "tflite")
    assert not {"Softmax", "HardSwish", "AveragePool"} & {*phone.compute, *phone.forward}
    assert "Softmax" in micro.compute and "AveragePool" in micro.forward
    assert load_profile("microcontroller").runtime_named("tflite").static_shapes


@pytest.mark.parametrize(("name", "release"), [("iphone15", "iOS"), ("iphone13", "iOS"), ("mac-m2", "macOS")])
def test_core_ml_gets_uint8_and_float16_around(name: str, release: str) -> None:
    runtime, rules = load_profile(name).runtime_named("coreml"), rules_of(name, "coreml")
    assert (rules.activation, rules.symmetric_activation, rules.per_channel) == ("uint8", False, True)
    assert (rules.bias, rules.scale, runtime.around) == ("float", "float16", "float16")
    assert runtime.options["minimum_deployment_target"] == runtime.versions[0]
    assert all(version.startswith(release) for version in runtime.versions)


def test_onnx_runtime_has_one_set_of_rules_on_arm() -> None:
    arm = [p for p in all_profiles() if p.arch == "aarch64"]
    assert {p.name for p in arm} >= {"rpi4", "rpi5", "graviton", "mac-m2", *PHONES}
    for profile in arm:
        runtime = profile.runtime_named("ort")
        expected = load_profile("rpi5").runtime_named("ort")
        same = {"source": runtime.source, "date": runtime.date}
        same |= {"forms": runtime.forms, "weights": runtime.weights}  # by documentation, on boards alone
        assert runtime == expected.model_copy(update=same), profile.name


def test_tensorrt_8_reads_single_precision_scales_and_volta_has_no_sparsity() -> None:
    runtime, rules = load_profile("xavier-nx").runtime_named("tensorrt"), rules_of("xavier-nx", "tensorrt")
    assert (runtime.versions, runtime.onnx_opset, runtime.sparsity) == (("8.5",), 17, None)
    assert (rules.activation, rules.symmetric_activation, rules.scale) == ("int8", True, "float32")


# --- building ---------------------------------------------------------------------------------------------

TINY = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,8,6,6] x) => (float[1,4] y) {
        c = Conv<pads=[1,1,1,1]>(x, w, b)
        r = Relu(c)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        y = MatMul(f, v)
    }"""


def usable() -> list[str]:
    """Devices by one of whose runtimes a build here can go."""
    installed = set(backend_names())
    return [
        p.name
        for p in all_profiles()
        if any(r.name in installed and not r.options.get("micro") for r in p.runtime)
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of every kind of rule: computed, fused, moved, and with a float result."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(TINY)
    for name, shape in {"w": (8, 8, 3, 3), "b": (8,), "v": (8, 4)}.items():
        array = rng.normal(0, 0.2, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", usable())
def test_every_device_with_a_usable_runtime_builds(name: str, tiny: Path, tmp_path: Path) -> None:
    data = {"x": np.random.default_rng(1).normal(0, 1, (16, 8, 6, 6)).astype(np.float32)}
    cache = tiny.parent / "cache"
    bundle = build(
        tiny, target=name, data=data, precision="int8", measure=False, out=tmp_path, cache=cache, samples=16
    )
    assert bundle.manifest.target == name
    assert bundle.manifest.runtime in {r.name for r in load_profile(name).runtime}
    assert load_plan(bundle).quantized


@pytest.mark.parametrize("name", PHONES)
def test_nothing_is_timed_in_a_phones_place(name: str) -> None:
    assert not load_profile(name).stand_in
    assert not find_target(name).stands_here()


@pytest.mark.slow
@pytest.mark.parametrize("name", usable())
def test_the_example_builds_for_every_device(name: str, tmp_path: Path) -> None:
    folder = ROOT / "examples/digits"
    bundle = build(
        folder / "digits.onnx",
        target=name,
        data=folder / "calib.npz",
        eval=folder / "eval.npz",
        measure=False,
        out=tmp_path,
        cache=tmp_path / "cache",
    )
    assert bundle.manifest.verdict.status == "met", bundle.manifest.verdict


def test_every_profile_has_a_place_in_this_file() -> None:
    assert set(PROMISED) <= set(profile_names())
