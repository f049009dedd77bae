"""The programs of a report are run, and compute what `deploy run` computes; C++ where it can be compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle.read import Bundle, load_bundle
from deploy.bundle.report.running import cpp_literal, kotlin_literal, running, snippets
from deploy.cli import main
from deploy.errors import UsageError
from deploy.pipeline import build
from deploy.spec.project import InputSection
from deploy.spec.tensors import Normalisation, TensorSpec

NORMALISATION = Normalisation(scale=1 / 255, mean=(0.49, 0.48, 0.44), std=(0.25, 0.24, 0.26))
DRIVER = """
import runpy, sys
import numpy as np
program, samples, results = sys.argv[1:]
sys.argv = [program, samples]
np.savez(results, **runpy.run_path(program)["outputs"])
"""
Flags = Callable[[Path], list[str | Path]]
ODD = 'x"\\ü\n??/'


def program(bundle: Bundle, language: str, folder: Path) -> Path:
    snippet = next(s for s in snippets(bundle) if s.language == language)
    path = folder / snippet.file
    path.write_text(snippet.code)
    return path


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def ort_flags(folder: Path) -> list[str | Path]:
    """The headers of ONNX Runtime (Debian: libonnxruntime-dev) and the library of the Python package."""
    import onnxruntime

    given = os.environ.get("ONNXRUNTIME_INCLUDE")
    places = [
        Path(p)
        for p in ([given] if given else []) + ["/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
    ]
    headers = next((p for p in places if (p / "onnxruntime_cxx_api.h").is_file()), None)
    if headers is None:
        pytest.skip(
            "ONNX Runtime's C++ headers are not installed (libonnxruntime-dev, or ONNXRUNTIME_INCLUDE)"
        )
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if library is None:
        pytest.skip("the Python package of ONNX Runtime has no library to link with here")
    soname = folder / "libonnxruntime.so.1"
    soname.symlink_to(library)
    return ["-I", headers, library, f"-Wl,-rpath,{folder}"]


def openvino_flags(folder: Path) -> list[str | Path]:
    del folder
    spec = find_spec("openvino")
    if spec is None or spec.origin is None:
        pytest.skip("OpenVINO is not installed")
    home = Path(spec.origin).parent
    libraries = sorted((home / "libs").glob("libopenvino.so.*"))
    if not (home / "include" / "openvino" / "openvino.hpp").is_file() or not libraries:
        pytest.skip("the Python package of OpenVINO has no headers or libraries here")
    return ["-I", home / "include", libraries[0], f"-Wl,-rpath,{home / 'libs'}"]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (16, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, network: Path, pixels: np.ndarray
) -> Callable[[str], Bundle]:
    """The network with raw pixels as its input, built once for a runtime."""
    folder = tmp_path_factory.mktemp("programs")
    made: dict[str, Bundle] = {}

    def run(runtime: str) -> Bundle:
        if runtime not in made:
            made[runtime] = build(
                network,
                target={"tensorrt": "jetson", "tflite": "android"}.get(runtime, "x86-avx2"),
                runtime=runtime,
                data={"x": pixels},
                inputs={"x": InputSection(layout="NCHW", normalisation=NORMALISATION)},
                measure=False,
                out=folder / runtime,
                cache=folder / "cache",
            )
        return made[runtime]

    return run


@pytest.fixture
def expected(tmp_path: Path, pixels: np.ndarray) -> Callable[[Bundle], np.ndarray]:
    """What `deploy run` makes of the first sample."""

    def run(bundle: Bundle) -> np.ndarray:
        np.savez(tmp_path / "one.npz", x=pixels[:1])
        outputs = tmp_path / "expected.npz"
        assert main(["run", str(bundle.folder), str(tmp_path / "one.npz"), "-o", str(outputs)]) == 0
        with np.load(outputs) as archive:
            found: np.ndarray = archive["y"]
        return found

    return run


MODULES = {"ort": "onnxruntime", "openvino": "openvino", "tflite": "ai_edge_litert"}


@pytest.mark.parametrize("runtime", list(MODULES))
def test_the_python_program_computes_what_deploy_run_computes(
    make: Callable[[str], Bundle],
    expected: Callable[[Bundle], np.ndarray],
    tmp_path: Path,
    pixels: np.ndarray,
    runtime: str,
):
    pytest.importorskip(MODULES[runtime])
    bundle = make(runtime)
    path = program(bundle, "Python", tmp_path)
    np.savez(tmp_path / "samples.npz", x=pixels)
    results = tmp_path / "results.npz"
    run(sys.executable, "-c", DRIVER, path, tmp_path / "samples.npz", results, cwd=bundle.folder)
    with np.load(results) as archive:
        np.testing.assert_allclose(archive["y"], expected(bundle), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("runtime", "flags"), [("ort", ort_flags), ("openvino", openvino_flags)])
def test_the_cpp_program_computes_what_deploy_run_computes(
    make: Callable[[str], Bundle],
    expected: Callable[[Bundle], np.ndarray],
    tmp_path: Path,
    pixels: np.ndarray,
    runtime: str,
    flags: Flags,
):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    words = flags(tmp_path)
    bundle = make(runtime)
    path = program(bundle, "C++", tmp_path)
    compiled = tmp_path / "program"
    run("g++", "-std=c++17", "-O0", "-Wall", path, *words, "-o", compiled, cwd=tmp_path)
    pixels[:1].tofile(tmp_path / "x.bin")
    name, *numbers = run(compiled, tmp_path / "x.bin", cwd=bundle.folder).split()
    assert name == "y"
    np.testing.assert_allclose(np.array(numbers, np.float32)[None], expected(bundle), rtol=0, atol=1e-6)


TWO = """g (int64[n,4] ids, float[n,4] x) => (float[n,4] y, int64[n,4] z) {
    f = Cast <to = 1> (ids)
    y = Mul (x, f)
    z = Add (ids, ids)
}"""


@pytest.mark.parametrize(("runtime", "flags"), [("ort", ort_flags), ("openvino", openvino_flags)])
def test_several_inputs_and_integers(save: Callable[..., Path], tmp_path: Path, runtime: str, flags: Flags):
    words = flags(tmp_path)
    bundle = build(
        save(tmp_path / "two.onnx", TWO, {}), target="x86-avx2", runtime=runtime, precision="float",
        measure=False, out=tmp_path / "dist", cache=tmp_path / "cache",
    )  # fmt: skip
    ids, x = np.array([[1, -2, 3, 400]]), np.array([[0.5, 1.5, -2.5, 0.25]], np.float32)
    np.savez(tmp_path / "samples.npz", ids=ids, x=x)
    results = tmp_path / "results.npz"
    path = program(bundle, "Python", tmp_path)
    run(sys.executable, "-c", DRIVER, path, tmp_path / "samples.npz", results, cwd=bundle.folder)
    with np.load(results) as archive:
        np.testing.assert_allclose(archive["y"], ids * x)
        np.testing.assert_array_equal(archive["z"], 2 * ids)
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    path, compiled = program(bundle, "C++", tmp_path), tmp_path / "program"
    run("g++", "-std=c++17", "-O0", path, *words, "-o", compiled, cwd=tmp_path)
    ids.tofile(tmp_path / "ids.bin")
    x.tofile(tmp_path / "x.bin")
    said = run(compiled, tmp_path / "ids.bin", tmp_path / "x.bin", cwd=bundle.folder)
    assert said == "y 0.5 -3 -7.5 100\nz 2 -4 6 800\n"


def test_the_programs_for_tensorrt_fit_the_script_that_they_stand_on(make: Callable[[str], Bundle]):
    """They run on the device only: here their Python compiles, and the script has what they take from it."""
    bundle = make("tensorrt")
    found = {s.language: s.code for s in snippets(bundle)}
    assert list(found) == ["Shell", "Python", "C++"]
    compile(found["Python"], "run_tensorrt.py", "exec")
    script = (bundle.folder / "artifact" / "build_engine.py").read_text()
    assert "from build_engine import Engine, import_tensorrt" in found["Python"]
    assert "class Engine:" in script and "def import_tensorrt()" in script
    assert "--check ../selftest.npz --time 200" in found["Shell"]
    assert running(bundle).note


def test_the_kotlin_program_names_what_the_file_has(make: Callable[[str], Bundle]):
    """No compiler is at hand: brackets close, the signature's names and the scaling are told, in ASCII."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    bundle = make("tflite")
    code = next(s.code for s in snippets(bundle) if s.language == "Kotlin")
    assert code.isascii()
    assert all(code.count(a) == code.count(b) for a, b in ("()", "{}", "[]"))
    model = bundle.folder / "artifact" / bundle.manifest.artifact.files[0]
    signatures = interpreter.Interpreter(model_path=str(model)).get_signature_list()
    assert signatures == {"serving_default": {"inputs": ["x"], "outputs": ["y"]}}
    assert 'SIGNATURE = "serving_default"' in code and '"x": float32 [1, 3, 8, 8]' in code
    assert f'assets.open("{model.name}")' in code and "mean [0.49, 0.48, 0.44]" in code


def test_odd_names_and_fixed_sizes_stay_inside_their_literals(built: Bundle):
    """A name that would end a string, a comment or a line is a literal like any other."""
    spec = TensorSpec(name=ODD, dtype="float32", shape=(2, 3, 8, 8), layout="NCHW")
    artifact = built.manifest.artifact.model_copy(update={"inputs": (spec,)})
    bundle = Bundle(
        built.folder,
        built.manifest.model_copy(update={"artifact": artifact}),
        built.measurements,
        built.digest,
    )
    python, cpp = (s.code for s in snippets(bundle))
    assert ascii(ODD) in python and "[:2]" in python
    compile(python, "run_ort.py", "exec")
    assert r'"x\042\134\303\274\012\077\077/"' in cpp
    assert all(ODD not in line and line.isascii() for line in (python + cpp).splitlines())


def test_a_cpp_literal_is_plain_ascii() -> None:
    assert cpp_literal('a"b\\\n?é') == r'"a\042b\134\012\077\303\251"'


def test_a_kotlin_literal_holds_no_template_and_ends_no_comment() -> None:
    assert kotlin_literal('$a"*/\\é😀') == r'"\u0024a\u0022\u002a\u002f\u005c\u00e9\ud83d\ude00"'


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (TensorSpec(name="x", dtype="float32", shape=(1, 3)), ""),
        (
            TensorSpec(
                name="x", dtype="float32", shape=(1, 3), normalisation=Normalisation(scale=0.5, mean=(1.0,))
            ),
            "(x × 0.5 − mean) ÷ std with mean 1 and std 1",
        ),
        (
            TensorSpec(
                name="x", dtype="uint8", shape=(1, 3),
                normalisation=Normalisation(scale=0.5, mean=(1.0,), folded=True),
            ),
            "pixels from 0 to 255; the artifact itself computes (x × 0.5 − mean) ÷ std with mean 1 and std 1",
        ),
    ],
)  # fmt: skip
def test_what_becomes_of_raw_numbers_is_said(built: Bundle, spec: TensorSpec, words: str):
    artifact = built.manifest.artifact.model_copy(update={"inputs": (spec,)})
    manifest = built.manifest.model_copy(update={"artifact": artifact})
    found = running(Bundle(built.folder, manifest, built.measurements, built.digest))
    assert found.inputs[0].normalisation == words


def test_an_unusual_type_or_backend_has_no_program(built: Bundle):
    for update in (
        {"inputs": (TensorSpec(name="x", dtype="float16", shape=(1,)),)},
        {"backend": "acme"},
        {"backend": "../../ort"},
    ):
        artifact = built.manifest.artifact.model_copy(update=update)
        manifest = built.manifest.model_copy(update={"artifact": artifact})
        assert snippets(Bundle(built.folder, manifest, built.measurements, built.digest)) == ()


def test_options_of_another_kind_are_told(built: Bundle):
    manifest = built.manifest.model_copy(update={"options": {"threads": 1, "session": [1, 2]}})
    with pytest.raises(UsageError, match="options"):
        snippets(Bundle(built.folder, manifest, built.measurements, built.digest))


def test_a_damaged_selftest_is_told(bundle_copy: Path):
    (bundle_copy / "selftest.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(UsageError, match="not a self-test"):
        snippets(load_bundle(bundle_copy))
