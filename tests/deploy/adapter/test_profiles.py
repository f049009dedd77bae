"""Every shipped profile is complete and sourced; names, inheritance, host variants and messages work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from deploy.adapter.profiles import (
    all_profiles,
    load_profile,
    merge,
    profile_for,
    profile_names,
    read_profiles,
    resolve,
    target_name,
)
from deploy.errors import UsageError
from deploy.graph.row_bias import BIAS
from deploy.spec.profile import Figure, Profile, QuantRules

ROOT = Path(__file__).parents[3]
MINIMAL = """\
schema = 1
name = "{name}"
title = "A board"
{extra}
[[runtime]]
name = "ort"
onnx_opset = 21
source = "data sheet"
date = 2026-11-21
"""

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder of profiles: name -> text."""

    def write(**texts: str) -> Path:
        for name, text in texts.items():
            (tmp_path / f"{name}.toml").write_text(text)
        return tmp_path

    return write


def minimal(name: str, extra: str = "") -> str:
    return MINIMAL.format(name=name, extra=extra)


# --- what we ship -----------------------------------------------------------------------------------------


def test_every_shipped_file_loads_under_its_own_name() -> None:
    assert {path.stem for path in (ROOT / "profiles").glob("*.toml")} <= set(profile_names())


@pytest.mark.parametrize("name", profile_names())
def test_each_fact_says_where_it_is_from(name: str) -> None:
    profile = load_profile(name)
    facts = {**profile.precision, **profile.memory, **profile.hardware}
    sources = [f.source for f in facts.values() if isinstance(f, Figure)]
    for runtime in profile.runtime:
        sources.append(runtime.source)
        if runtime.quant:
            sources.append(runtime.quant.source)
        if runtime.sparsity and isinstance(runtime.sparsity.gain, Figure):
            sources.append(runtime.sparsity.gain.source)
    for source in sources:
        assert len(source) > 10, source
        assert not source.startswith(("/", "~", "file:")), "a source is a public document, not a path"


@pytest.mark.parametrize("profile", [p for p in all_profiles() if p.runtime], ids=lambda p: p.name)
def test_rules_are_consistent(profile: Profile) -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    for runtime in profile.runtime:
        chain_members = {op for chain in runtime.fuses for op in chain.split("+")}
        assert chain_members <= {*known, BIAS}
        rules = runtime.quant
        if rules is None:
            continue
        assert {*rules.compute, *rules.forward, *rules.unify, *rules.fixed_output} <= known
        assert set(rules.float_output) <= {*rules.compute, *runtime.fuses}
        assert set(rules.float_input) <= {op for chain in runtime.fuses for op in chain.split("+")[1:]}
        assert set(rules.weighted) <= set(rules.compute)
        kinds = [*rules.compute, *rules.forward, *rules.unify]
        assert len(set(kinds)) == len(kinds), "an operation computes, moves one operand or joins several"
        assert {chain.split("+")[0] for chain in runtime.fuses} <= set(rules.compute)
        assert not (rules.symmetric_activation and rules.activation == "uint8")


def test_a_cpu_without_dot_products_gets_seven_bit_weights_and_nothing_else_changes() -> None:
    vnni, avx2 = (load_profile(name).runtime_named("ort").quant for name in ("x86-vnni", "x86-avx2"))
    assert vnni is not None and avx2 is not None
    assert (vnni.weight_bits, avx2.weight_bits) == (8, 7)
    assert avx2.compute == vnni.compute and avx2.activation == vnni.activation == "uint8"


def test_the_promised_targets_are_there() -> None:
    assert load_profile("jetson").name == "jetson-orin-nano"
    assert load_profile("rpi").name == "rpi5"
    wanted = {"x86-cpu", "x86-vnni", "x86-avx2", "jetson-orin-nano", "jetson-agx-orin"}
    assert wanted | {"nvidia-a100", "nvidia-h200", "rpi4", "rpi5"} <= set(profile_names())


@pytest.mark.parametrize("name", ["jetson-orin-nano", "jetson-agx-orin", "nvidia-a100", "nvidia-h200"])
def test_tensorrt_gets_symmetric_activations_and_float_biases(name: str) -> None:
    runtime = load_profile(name).runtime_named("tensorrt")
    assert runtime.around == "float16" and runtime.onnx_opset >= 19, "Q/DQ take float16 scales from 19 on"
    assert runtime.quant is not None
    assert (runtime.quant.activation, runtime.quant.symmetric_activation) == ("int8", True)
    assert (runtime.quant.bias, runtime.quant.scale, runtime.quant.per_channel) == ("float", "float16", True)


@pytest.mark.parametrize("name", ["rpi4", "rpi5"])
def test_arm_gets_affine_int8_activations(name: str) -> None:
    rules = load_profile(name).runtime_named("ort").quant
    assert rules is not None and (rules.activation, rules.symmetric_activation) == ("int8", False)
    assert rules.weight_bits == 8, "products are added into 32 bits there: nothing saturates"


# --- what we say of ONNX Runtime, asked of ONNX Runtime ---------------------------------------------------

IMAGE, ROWS, POINT = "float[1,8,6,6]", "float[3,8]", "float[1,8,1,1]"
BODIES = {
    "Conv": (IMAGE, "Conv<pads=[1,1,1,1]>(a, w, bias)"),
    "MatMul": (ROWS, "MatMul(a, w)"),
    "Gemm": (ROWS, "Gemm<transB=1>(a, w, bias)"),
    "Add": (IMAGE, "Add(a, b)"),
    "Mul": (IMAGE, "Mul(a, b)"),
    "Concat": (IMAGE, "Concat<axis=1>(a, b)"),
    "Transpose": (IMAGE, "Transpose<perm=[0,2,3,1]>(a)"),
    "MaxPool": (IMAGE, "MaxPool<kernel_shape=[2,2],strides=[2,2]>(a)"),
    "Split": (IMAGE, "Split<axis=1,num_outputs=1>(a)"),
    "Gather": (IMAGE, "Gather<axis=1>(a, zero)"),
    "GatherElements": (POINT, "GatherElements<axis=1>(a, zeros)"),
    "Reshape": (IMAGE, "Reshape(a, flat)"),
    "Squeeze": (POINT, "Squeeze(a, spatial)"),
    "Unsqueeze": (IMAGE, "Unsqueeze(a, zero)"),
    "Slice": (IMAGE, "Slice(a, zero, three)"),
    "Expand": (POINT, "Expand(a, large)"),
    "Tile": (IMAGE, "Tile(a, twice)"),
    "DepthToSpace": (IMAGE, "DepthToSpace<blocksize=2>(a)"),
    "Resize": (IMAGE, "Resize<mode='nearest',coordinate_transformation_mode='asymmetric'>(a, , scales)"),
    "ReduceMax": (IMAGE, "ReduceMax(a, spatial)"),
    "ReduceMin": (IMAGE, "ReduceMin(a, spatial)"),
}
"""How to write an operation that needs more than the value ``a``; ``b`` is a second one like it."""

WEIGHT_SHAPES = {"Conv": (8, 8, 3, 3), "MatMul": (8, 8), "Gemm": (8, 8)}


def qdq_graph(chain: str, rules: QuantRules, *, quantized_output: bool) -> onnx.ModelProto:
    """The chain as its plan would write it: operands in [-6, 6], a computed result in [0, 6]."""
    head, *activations = chain.split("+")
    type_in, body = BODIES.get(head, (IMAGE, f"{head}(a)"))
    low = 0 if rules.activation == "uint8" else -128
    scale, zero_point = np.float32(12 / 255), np.array(low + 128, rules.activation)
    constants: dict[str, np.ndarray | np.float32] = {
        "s": scale,
        "z": zero_point,
        "s_y": np.float32(6 / 255) if head in rules.compute else scale,
        "z_y": np.array(low, rules.activation) if head in rules.compute else zero_point,
        "lowest": np.float32(0),
        "highest": np.float32(6),
        "zero": np.array([0]),
        "zeros": np.zeros((1, 1, 1, 1), np.int64),
        "three": np.array([3]),
        "spatial": np.array([2, 3]),
        "flat": np.array([1, -1]),
        "large": np.array([1, 8, 3, 3]),
        "twice": np.array([1, 2, 1, 1]),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    lines = ["xq = QuantizeLinear(x, s, z)", "a = DequantizeLinear(xq, s, z)"]
    if "b)" in body:
        lines += ["x2q = QuantizeLinear(x2, s, z)", "b = DequantizeLinear(x2q, s, z)"]
    if head in WEIGHT_SHAPES:
        weight_scale = np.full(8, 0.01, np.float32)
        constants |= {
            "wq": np.ones(WEIGHT_SHAPES[head], np.int8),
            "ws": weight_scale,
            "wz": np.zeros(8, np.int8),
            "bq": np.ones(8, np.int32),
            "bs": weight_scale * scale,
            "bz": np.zeros(8, np.int32),
        }
        lines.append(f"w = DequantizeLinear<axis={int(head == 'MatMul')}>(wq, ws, wz)")
        lines += ["bias = DequantizeLinear<axis=0>(bq, bs, bz)"] if "bias" in body else []
    lines.append("y0 = " + body.replace("'", '"'))
    for i, activation in enumerate(activations):
        bounds = ", lowest, highest" if activation == "Clip" else ""
        lines.append(f"y{i + 1} = {activation}(y{i}{bounds})")
    last = f"y{len(activations)}"
    if quantized_output:
        lines += [f"yq = QuantizeLinear({last}, s_y, z_y)", "y = DequantizeLinear(yq, s_y, z_y)"]
        last = "y"
    second = f", {type_in} x2" if "b)" in body else ""
    header = f'<ir_version: 10, opset_import: ["" : 21]> g ({type_in} x{second}) => (float {last})'
    model = onnx.parser.parse_model(header + " {\n" + "\n".join(lines) + "\n}")
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
        if name in used
    )
    return model


def optimised(model: onnx.ModelProto, folder: Path, activation: str) -> onnx.GraphProto:
    """What ONNX Runtime makes of the model, for Arm where activations are signed."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.add_session_config_entry("session.qdqisint8allowed", str(int(activation == "int8")))
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx").graph


def float_operations(graph: onnx.GraphProto) -> list[str]:
    """Operations that read a dequantized value: those which run in float."""
    dequantized = {name for n in graph.node if n.op_type == "DequantizeLinear" for name in n.output}
    return [node.op_type for node in graph.node if dequantized & set(node.input)]


@pytest.mark.parametrize("name", ["x86-vnni", "rpi5"])
def test_onnx_runtime_computes_these_operations_and_chains_in_integers(name: str, tmp_path: Path) -> None:
    runtime = load_profile(name).runtime_named("ort")
    rules = runtime.quant
    assert rules is not None
    for chain in (*rules.compute, *runtime.fuses, *rules.forward, *rules.unify):
        graph = optimised(qdq_graph(chain, rules, quantized_output=True), tmp_path, rules.activation)
        assert not float_operations(graph), chain
        assert not {"Relu", "Clip"} & {n.op_type for n in graph.node}, chain
    for op in rules.float_output:
        graph = optimised(qdq_graph(op, rules, quantized_output=False), tmp_path, rules.activation)
        assert not float_operations(graph), f"{op} with a float result"


@pytest.mark.parametrize("op", ["Softmax", "Tanh", "HardSwish", "HardSigmoid", "Gelu", "GlobalMaxPool"])
def test_the_criterion_above_sees_what_stays_float(op: str, tmp_path: Path) -> None:
    rules = load_profile("x86-vnni").runtime_named("ort").quant
    assert rules is not None and op not in rules.compute
    graph = optimised(qdq_graph(op, rules, quantized_output=True), tmp_path, rules.activation)
    assert bool(float_operations(graph)) == (op != "Softmax"), "Softmax has an integer kernel, but a slow one"


# --- finding ----------------------------------------------------------------------------------------------


def test_aliases_lead_to_the_same_profile() -> None:
    assert load_profile("cpu") == load_profile("x86") == load_profile("x86-cpu")


@pytest.mark.parametrize(("typed", "meant"), [("x86-cpuu", "x86-cpu"), ("X86-VNNI", "x86-vnni")])
def test_an_unknown_target_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"unknown target '{typed}'") as e:
        load_profile(typed)
    assert meant in e.value.hint and "deploy targets" in e.value.hint


def test_an_unknown_target_like_nothing_else_gets_no_suggestion() -> None:
    with pytest.raises(UsageError) as e:
        load_profile("qqqqqqqqqqqq")
    assert "did you mean" not in e.value.hint and "deploy targets" in e.value.hint


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2", "avx512f", "avx512_vnni"}, "x86-vnni"),
        ({"avx2", "avx_vnni"}, "x86-vnni"),
        ({"avx2", "amx_int8"}, "x86-vnni"),
        ({"avx2", "fma", "avx512f"}, "x86-avx2"),
    ],
)
def test_the_host_profile_follows_the_cpu(features: set[str], expected: str) -> None:
    assert resolve(load_profile("x86-cpu"), features).name == expected


def test_a_host_that_fits_no_variant_is_told_what_to_name() -> None:
    with pytest.raises(UsageError, match="avx2") as e:
        resolve(load_profile("x86-cpu"), {"asimd", "asimddp"})
    assert "x86-avx2" in e.value.hint


def test_a_fixed_profile_resolves_to_itself() -> None:
    assert resolve(load_profile("x86-avx2"), set()) is load_profile("x86-avx2")


# --- inheritance ------------------------------------------------------------------------------------------


def test_merge_overrides_tables_key_by_key_and_runtimes_by_name() -> None:
    parent = {
        "title": "parent",
        "memory": {"size": 4, "bandwidth": 34},
        "runtime": [
            {"name": "ort", "align": 1},
            {"name": "tensorrt", "align": 8, "quant": {"bits": 8, "of": ["Conv"]}},
        ],
    }
    child = {
        "memory": {"size": 8},
        "runtime": [{"name": "new"}, {"name": "tensorrt", "quant": {"of": ["MatMul"]}}],
    }
    assert merge(parent, child) == {
        "title": "parent",
        "memory": {"size": 8, "bandwidth": 34},
        "runtime": [
            {"name": "new"},
            {"name": "tensorrt", "align": 8, "quant": {"bits": 8, "of": ["MatMul"]}},
            {"name": "ort", "align": 1},
        ],
    }
    assert parent["memory"] == {"size": 4, "bandwidth": 34}, "the parent is left as it was"


def test_aliases_and_host_variants_are_not_inherited(folder: Folder) -> None:
    parent = minimal("parent", 'aliases = ["p"]\non_host = [{ use = "parent" }]')
    child = 'schema = 1\nname = "child"\ninherits = "parent"\ntitle = "Child"\n'
    profiles = read_profiles([folder(parent=parent, child=child)])
    assert list(profiles) == ["child", "parent"]
    assert type(profiles["child"]) is Profile
    assert profiles["child"].aliases == () and profiles["child"].on_host == ()
    assert profiles["child"].runtime == profiles["parent"].runtime


def test_inheritance_is_resolved_once(folder: Folder) -> None:
    heir = 'schema = 1\nname = "{}"\ninherits = "{}"\ntitle = "Heir"\n'
    with pytest.raises(UsageError, match=r"c\.toml: inherits 'b', which itself inherits 'a'"):
        read_profiles([folder(a=minimal("a"), b=heir.format("b", "a"), c=heir.format("c", "b"))])
    with pytest.raises(UsageError, match="inherits 'nobody', which is not a profile"):
        read_profiles([folder(c=heir.format("c", "nobody"))])


# --- malformed files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (minimal("a", 'colour = "red"'), r"a\.toml:4: unknown key 'colour'"),
        (minimal("a").replace("onnx_opset = 21", "onnx_opset = 3"), r"a\.toml:7: 'runtime\.0\.onnx_opset'"),
        (minimal("a", "[precision]\nint8 = { value = true }\n"), r"a\.toml:5: 'precision\.int8.*source'"),
        ('schema = 1\nname = "a"\ntitle = "No way to run"\n', r"a\.toml: a profile needs at least one"),
        ('schema = 1\nname = "a\n', r"a\.toml: not valid TOML: .*line 2"),
        (minimal("a", 'on_host = [{ use = "b" }]'), r"a\.toml: on_host uses 'b', which is not a profile"),
        (minimal("x86", 'aliases = ["x86"]'), r"a\.toml: the name 'x86' is already taken"),
    ],
)
def test_a_malformed_profile_is_named_with_line_and_key(folder: Folder, text: str, message: str) -> None:
    with pytest.raises(UsageError) as e:
        read_profiles([folder(a=text)])
    assert re.search(message, e.value.message), e.value.message
    assert e.value.hint


def test_a_mistake_in_an_heir_is_found_in_its_own_file(folder: Folder) -> None:
    heir = 'schema = 1\nname = "b"\ninherits = "a"\ntitle = "B"\n\n[[runtime]]\nname = "ort"\nalign = 0\n'
    with pytest.raises(UsageError, match=r"b\.toml:8: 'runtime\.0\.align'"):
        read_profiles([folder(a=minimal("a"), b=heir)])


def test_two_files_may_not_claim_one_name(folder: Folder) -> None:
    texts = {"a": minimal("a", 'aliases = ["board"]'), "b": minimal("b", 'aliases = ["board"]')}
    with pytest.raises(UsageError, match="the name 'board' is already taken"):
        read_profiles([folder(**texts)])


def test_a_runtime_may_be_like_that_of_another_profile(folder: Folder) -> None:
    like = '[[runtime]]\nname = "ort"\nlike = "board"\nonnx_opset = 20\n'
    other = f'schema = 1\nname = "other"\ntitle = "Another"\n{like}'
    heir = 'schema = 1\nname = "heir"\ntitle = "An heir"\ninherits = "other"\n'
    found = read_profiles([folder(board=minimal("board"), other=other, heir=heir)])
    runtime = found["other"].runtime_named("ort")
    assert (runtime.source, runtime.onnx_opset) == ("data sheet", 20)
    assert found["heir"].runtime == found["other"].runtime


@pytest.mark.parametrize(
    ("name", "like", "said"),
    [("ort", "nowhere", "which is not a profile"), ("openvino", "board", "which describes none")],
)
def test_a_runtime_like_none_is_refused(folder: Folder, name: str, like: str, said: str) -> None:
    text = f'schema = 1\nname = "other"\ntitle = "Another"\n[[runtime]]\nname = "{name}"\nlike = "{like}"\n'
    with pytest.raises(UsageError, match=said):
        read_profiles([folder(board=minimal("board"), other=text)])


@pytest.mark.parametrize(
    ("arch", "features", "name"),
    [
        ("x86_64", {"avx2", "fma"}, "x86-avx2"),
        ("x86_64", {"avx2", "fma", "avx_vnni"}, "x86-vnni"),
        ("aarch64", {"asimd"}, "rpi4"),
        ("aarch64", {"asimd", "asimddp"}, "rpi5"),
    ],
)
def test_a_machine_has_the_profile_that_asks_for_most_of_what_it_has(
    arch: str, features: set[str], name: str
) -> None:
    assert profile_for(arch, features).name == name


def test_a_machine_that_no_profile_describes_is_told() -> None:
    with pytest.raises(UsageError, match="a machine like this one"):
        profile_for("riscv64", ())


CAMERA = 'schema = 1\nname = "camera"\naliases = ["cam"]\ninherits = "rpi5"\ntitle = "A camera"\n'


@pytest.mark.usefixtures("named")
def test_a_file_that_is_named_is_a_target(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text(CAMERA)
    with pytest.raises(UsageError, match="unknown target 'camera'"):
        load_profile("camera")
    assert target_name("gate.toml", tmp_path) == "camera"
    assert load_profile("cam").title == "A camera" and "camera" in profile_names()
    assert load_profile("cam").arch == load_profile("rpi5").arch
    assert target_name("camera") == "camera"


@pytest.mark.usefixtures("named")
def test_files_that_are_named_share_no_names(tmp_path: Path) -> None:
    """One of them would be built for in the place of the other."""
    first, second = tmp_path / "gate.toml", tmp_path / "door.toml"
    first.write_text(CAMERA)
    target_name(str(first))
    for text, name in (
        (CAMERA.replace("A camera", "Another"), "cam"),
        (CAMERA.replace('"camera"', '"door"'), "cam"),
        (CAMERA.replace('"camera"', '"door"').replace('"cam"', '"camera"'), "camera"),
    ):
        second.write_text(text)
        with pytest.raises(UsageError, match=f"door.toml: the name '{name}' is already taken by .*gate.toml"):
            target_name(str(second))
    second.write_text(CAMERA)
    assert target_name(str(second)) == "camera", "the same words in another place"
    first.write_text(CAMERA.replace("A camera", "Newer"))
    second.write_text(CAMERA.replace('"camera"', '"door"').replace("cam", "entry"))
    assert (target_name(str(second)), target_name(str(first))) == ("door", "camera")
    assert load_profile("cam").title == "Newer"


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "gate.toml: cannot be read: No such file or directory"),
        ("name = ", "gate.toml: not valid TOML"),
        (CAMERA.replace("camera", "rpi4"), "the name 'rpi4' is already taken by"),
        (CAMERA.replace('"cam"', '"rpi"'), "the name 'rpi' is already taken by"),
        (CAMERA + "clock = 3\n", "gate.toml:6: unknown key 'clock'"),
        (CAMERA.replace("rpi5", "rpi9"), "inherits 'rpi9', which is not a profile"),
    ],
)
def test_a_file_that_cannot_be_a_target_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "gate.toml").write_text(text)
    with pytest.raises(UsageError) as raised:
        load_profile(str(tmp_path / "gate.toml"))
    assert said in raised.value.message
    assert "camera" not in profile_names()


def test_one_of_ours_may_be_named_by_its_file() -> None:
    ours = Path(__file__).parents[3] / "profiles" / "rpi5.toml"
    assert load_profile(str(ours)) == load_profile("rpi5")
