"""Every command and every piece of Python that the documents show is run, page by page.

What cannot be run here is marked in its fence, with the reason as its title; `docs/run.py` says how.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from deploy.cli import app

ROOT = Path(__file__).parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


docs = load(ROOT / "docs" / "run.py")
SLOW = {
    f"how-to/{page}.md"
    for page in (
        "budget", "choose", "compress", "images", "jetson", "measure-machine", "phones", "pipeline", "plan",
        "pytorch", "report", "sensitivity", "train", "x86",
    )
}  # fmt: skip
"""Start PyTorch, build or measure much; `make test-all` runs them, the fast tests understand them only."""

SHELL = ("||", "&&", "|", ">")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def name(page: Path) -> str:
    return page.relative_to(docs.PAGES).as_posix()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name(page), marks=[pytest.mark.slow] if name(page) in SLOW else [])
        for page in docs.pages()
    ],
)
def test_page_does_what_it_shows(page: Path, tmp_path: Path, cache: Path) -> None:
    docs.prepare(page, tmp_path)
    docs.run_page(page, tmp_path, cache)


@pytest.mark.parametrize("page", [page for page in docs.pages() if name(page) in SLOW], ids=name)
def test_what_a_slow_page_types_is_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands have the options that it gives them, and deploy.toml the keys. Nothing is built."""
    understood = []
    monkeypatch.setattr(app.Command, "invoke", lambda command, context: understood.append(command.name))
    for block in docs.blocks(page.read_text(encoding="utf-8")):
        if block.run and block.lang == "toml":
            docs.check_project(page, block)
        for command in docs.commands(block) if block.run and block.lang == "console" else ():
            program, *words = shlex.split(command.typed.replace("\\\n", " "))
            if program == "deploy":
                app.run(list(itertools.takewhile(lambda word: word not in SHELL, words)))
    assert understood


def test_readme_does_what_it_shows(tmp_path: Path, cache: Path) -> None:
    """Its commands name a model.onnx, data, and an input: here they are the example's."""
    readme = ROOT / "README.md"
    blocks = list(docs.blocks(readme.read_text(encoding="utf-8")))
    typed = [line for block in blocks for line in block.lines if line.startswith("deploy ")]
    assert len(typed) >= 8
    shutil.copytree(ROOT / "examples" / "digits", tmp_path, dirs_exist_ok=True)
    for wanted, there in (("model.onnx", "digits.onnx"), ("input.npz", "eval.npz")):
        shutil.copy(tmp_path / there, tmp_path / wanted)
    (tmp_path / "deploy.toml").unlink()  # `deploy init` writes it
    for line in typed:
        command = re.sub(r"\s+#.*", "", line)
        docs.execute(readme, 0, ["bash", "-c", command], tmp_path, cache)
    (program,) = (block.text for block in blocks if block.lang == "python")
    batch = "import numpy as np\nbatch = np.zeros((2, 1, 16, 16), np.float32)\n"
    docs.execute(readme, 0, [sys.executable, "-c", batch + program], tmp_path, cache)


def test_run_in_readme_is_real(tmp_path: Path, cache: Path) -> None:
    readme = ROOT / "README.md"
    shutil.copytree(
        ROOT / "examples" / "digits", tmp_path / "examples" / "digits", ignore=shutil.ignore_patterns("dist")
    )
    here = tmp_path
    (block,) = [b for b in docs.blocks(readme.read_text(encoding="utf-8")) if b.lang == "console"]
    for command in docs.commands(block):
        output, here = docs.run_command(readme, command, here, tmp_path, cache)
        docs.compare(readme, command, output)


def test_what_is_not_run_says_why() -> None:
    marked = [
        (name(page), block.title)
        for page in docs.pages()
        for block in docs.blocks(page.read_text(encoding="utf-8"))
        if not block.run
    ]
    assert all(title for _, title in marked), marked
    assert {title for _, title in marked} == {
        "On the board",
        "Installs a package",
        "Installs into a new environment",
        "Installs the package",
        "Rules of an accelerator",
        "A package of your own",
        "Frames in a row",
        "Once",
        "Needs the networks, and NNCF in an environment of its own",
    }


def test_command_that_fails_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ true\n$ false\n```\n")
    with pytest.raises(docs.PageError, match="ended with 1"):
        docs.run_page(page, tmp_path, tmp_path)


def test_shown_output_that_nothing_writes_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ echo file 12 kB\nfile 11 kB\n$ echo file\nweights 3 kB\n```\n")
    with pytest.raises(docs.PageError, match=r"weights kB"):
        docs.run_page(page, tmp_path, tmp_path)


def test_block_that_is_neither_run_nor_marked_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nrm -rf everything\n```\n")
    with pytest.raises(docs.PageError, match="neither run nor marked"):
        docs.run_page(page, tmp_path, tmp_path)


def test_piece_of_deploy_toml_with_a_wrong_key_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```toml\n[budget]\nmaximal_drop = 1\n```\n")
    with pytest.raises(docs.PageError, match="maximal_drop"):
        docs.run_page(page, tmp_path, tmp_path)


def test_generated_pages_are_fresh() -> None:
    """The same as in `make check`, so that whoever runs the tests alone learns of it."""
    run = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
