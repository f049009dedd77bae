"""Every shipped profile is complete and sourced; names, inheritance, host variants and messages work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.adapter.profiles import all_profiles, load_profile, merge, profile_names, read_profiles, resolve
from deploy.errors import UsageError
from deploy.spec.profile import Figure, Profile

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
    import onnx

    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    for runtime in profile.runtime:
        chain_members = {op for chain in runtime.fuses for op in chain.split("+")}
        assert chain_members <= known
        rules = runtime.quant
        if rules is None:
            continue
        assert {*rules.compute, *rules.forward, *rules.unify, *rules.fixed_output} <= known
        assert set(rules.float_output) <= set(rules.compute)
        assert not set(rules.forward) & set(rules.compute), "an operation either computes or only moves"
        assert all(len(set(ops)) == len(ops) for ops in (rules.compute, rules.forward, rules.unify))


def test_a_cpu_without_dot_products_gets_seven_bit_weights_and_nothing_else_changes() -> None:
    vnni, avx2 = (load_profile(name).runtime_named("ort").quant for name in ("x86-vnni", "x86-avx2"))
    assert vnni is not None and avx2 is not None
    assert (vnni.weight_bits, avx2.weight_bits) == (8, 7)
    assert avx2.compute == vnni.compute and avx2.activation == vnni.activation == "uint8"


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
