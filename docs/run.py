"""Runs what the pages tell a reader to type, page by page, each in a folder of its own.

    python docs/run.py                    run every page; fail where a command fails or shows something else
    python docs/run.py --write PAGE...    put the real output into the pages

In a fenced block of a page

- ``console``: lines that start with ``$ `` are commands, run in order in one folder; what follows is output;
- ``python`` is a program; with ``title="name.py"`` it is a file, which later blocks find in the folder;
- ``toml`` with a title is a file as well; without one it is a piece of deploy.toml, and is checked as such;
- ``text`` and ``json`` only show something;
- ``{ .not-run title="why" }`` marks what cannot be run here; nothing else is skipped.

A page's folder starts as a copy of examples/digits, with what FILES adds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"
FENCE = re.compile(r"^(?P<indent> *)```(?P<lang>\w*) *(?P<rest>.*)$")
SHOWN = 0.75
"""The share of shown lines that a run has to give again: what hangs on timing may come out otherwise."""


@dataclass(frozen=True)
class Block:
    """A fenced block. ``first`` is the number of its first line of text, from 0."""

    lang: str
    title: str
    run: bool
    lines: tuple[str, ...]
    first: int

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@dataclass(frozen=True)
class Command:
    """What is typed, and the lines shown after it: ``first`` to ``last`` of the page, without the last."""

    typed: str
    shown: tuple[str, ...]
    first: int
    last: int


class PageError(Exception):
    """A page says something that does not happen."""


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = text.splitlines()
    position = 0
    while position < len(lines):
        opened = FENCE.match(lines[position])
        position += 1
        if opened is None:
            continue
        first = position
        indent = opened["indent"]
        while lines[position] != f"{indent}```":
            position += 1
        title = re.search(r'title="([^"]*)"', opened["rest"])
        yield Block(
            lang=opened["lang"],
            title=title[1] if title else "",
            run=".not-run" not in opened["rest"],
            lines=tuple(line.removeprefix(indent) for line in lines[first:position]),
            first=first,
        )
        position += 1


def commands(block: Block) -> list[Command]:
    """The commands of a console block; one that ends in a backslash goes on in the next line."""
    found: list[Command] = []
    position = 0
    while position < len(block.lines):
        if not block.lines[position].startswith("$ "):
            raise PageError(f"line {block.first + position + 1}: a console block starts with a command")
        typed = block.lines[position][2:]
        position += 1
        while typed.endswith("\\"):
            typed += "\n" + block.lines[position]
            position += 1
        first = position
        while position < len(block.lines) and not block.lines[position].startswith("$ "):
            position += 1
        found.append(Command(typed, block.lines[first:position], block.first + first, block.first + position))
    return found


def run_page(page: Path, folder: Path, cache: Path, *, check: bool = True) -> dict[Command, str]:
    """Run a page's blocks in ``folder`` and return what each command wrote. Raises PageError.

    Without ``check`` whatever is shown is taken for right.
    """
    written: dict[Command, str] = {}
    here = folder
    for block in blocks(page.read_text(encoding="utf-8")):
        if not block.run:
            continue
        if block.title and block.lang in ("python", "toml"):
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.lang == "python":
            execute(page, block.first, [sys.executable, "-c", block.text], here, cache)
        elif block.lang == "toml":
            check_project(page, block)
        elif block.lang == "console":
            for command in commands(block):
                written[command], here = run_command(page, command, here, folder, cache)
                if check:
                    compare(page, command, written[command])
        elif block.lang not in ("text", "json"):
            raise PageError(f"{page.name}:{block.first}: a block of '{block.lang}' is neither run nor marked")
    return written


def run_command(page: Path, command: Command, here: Path, folder: Path, cache: Path) -> tuple[str, Path]:
    """Type it into a shell that stands in ``here``; returns what it wrote and where it ended."""
    place = folder / ".here"
    script = f"set -e\n{command.typed}\npwd > '{place}'\n"
    output = execute(page, command.first, ["bash", "-c", script], here, cache)
    return output, Path(place.read_text(encoding="utf-8").strip())


def execute(page: Path, line: int, run: list[str], here: Path, cache: Path) -> str:
    environment = {
        **os.environ,
        "DEPLOY_CACHE": str(cache),
        "DEPLOY_DATA": str(data_folder(cache)),
        "NO_COLOR": "1",
        "COLUMNS": "110",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(here), os.environ.get("PYTHONPATH")))),
    }
    done = subprocess.run(
        run,
        cwd=here,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PageError(f"{page.name}:{line}: ended with {done.returncode}\n{run[-1]}\n{done.stdout}")
    return done.stdout


def data_folder(cache: Path) -> Path:
    """Where commands keep measurements: not in the user's own place, and not in the page's folder."""
    return cache.with_name(f"{cache.name}-data")


def check_project(page: Path, block: Block) -> None:
    """A piece of deploy.toml has to be one that `deploy build` would read."""
    from deploy.spec.project import Project

    try:
        table = tomllib.loads(block.text)
        Project.model_validate({"schema": 1, "model": {"path": "model.onnx"}, **table})
    except ValueError as e:
        raise PageError(f"{page.name}:{block.first}: {e}") from e


def compare(page: Path, command: Command, output: str) -> None:
    """Lines shown have to be written, as far as their first words go: figures change from run to run."""
    want = [words for line in command.shown if (words := first_words(line))]
    have = {first_words(line) for line in output.splitlines()}
    missing = [words for words in want if words not in have]
    if len(missing) > (1 - SHOWN) * len(want):
        raise PageError(f"{page.name}:{command.first}: shows lines {missing}, not in:\n{output}")


def first_words(line: str) -> str:
    """The first two words of a line, without figures, signs and paths."""
    return " ".join([word for word in line.split() if re.fullmatch(r"[A-Za-z_][\w.:,-]*", word)][:2])


def with_output(text: str, written: dict[Command, str], places: Mapping[str, str]) -> str:
    """The page with the real output of every command that shows some, but for those shown in part (...).

    ``places`` are folders of this run and what a reader's would be called.
    """
    lines = text.splitlines()
    for command, output in sorted(written.items(), key=lambda item: -item[0].first):
        for real, said in places.items():
            output = output.replace(real, said)
        if command.shown and "..." not in command.shown:
            lines[command.first : command.last] = [line.rstrip() for line in output.strip("\n").splitlines()]
    return "\n".join(lines) + "\n"


def prepare(page: Path, folder: Path) -> None:
    """The files that a page's commands find."""
    shutil.copytree(
        ROOT / "examples" / "digits", folder, ignore=shutil.ignore_patterns("dist"), dirs_exist_ok=True
    )
    make = FILES.get(page.relative_to(PAGES).as_posix())
    if make is not None:
        make(folder)


def pages() -> list[Path]:
    """The pages with something to run."""
    return [p for p in sorted(PAGES.rglob("*.md")) if "$ " in p.read_text() or "```python" in p.read_text()]


def images(folder: Path) -> None:
    """Digits as PNG files, a folder for each class."""
    from PIL import Image

    with np.load(folder / "eval.npz") as arrays:
        x, y = arrays["x"], arrays["y"]
    for i in range(120):
        place = folder / "photos" / str(y[i])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[i, 0] * 255).round().astype(np.uint8), mode="L").save(place / f"{i:03}.png")


def clips(folder: Path) -> None:
    """Forty tones as wav files, named by class."""
    (folder / "clips").mkdir()
    for i in range(40):
        tone = np.sin(np.arange(800) * (0.1 + 0.05 * (i % 10))) * 20_000
        with wave.open(str(folder / "clips" / f"{i % 10}-{i:02}.wav"), "wb") as clip:
            clip.setparams((1, 2, 16_000, 0, "NONE", ""))
            clip.writeframes(tone.astype("<i2").tobytes())


def reader(folder: Path) -> None:
    """A model that reads four tokens, and tokens for it."""
    import logging

    import onnx_ir as ir

    rng = np.random.default_rng(0)
    constants = {
        "table": rng.normal(size=(50, 8)).astype(np.float32),
        "weight": np.eye(8, 2, dtype=np.float32),
        "last": np.array([2]),
    }
    logging.disable(logging.WARNING)  # constants given beside the text are no mistake
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 17]>
        reader (int64[n, 4] tokens, int64[n, 4] mask) => (float[n, 2] logits)
        {
            words = Gather(table, tokens)
            kept = Cast<to = 1>(mask)
            wide = Unsqueeze(kept, last)
            masked = Mul(words, wide)
            mean = ReduceMean<axes = [1], keepdims = 0>(masked)
            logits = MatMul(mean, weight)
        }
        """,
        initializers=[ir.tensor(array, name=name) for name, array in constants.items()],
    )
    logging.disable(logging.NOTSET)
    ir.save(model, folder / "reader.onnx")
    np.savez(folder / "tokens.npz", tokens=rng.integers(0, 50, (64, 4)), mask=np.ones((64, 4), np.int64))


def supplied(folder: Path) -> None:
    """The digits network in Q/DQ form, as another tool makes it."""
    import logging

    from onnxruntime import quantization

    class Samples(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            x = np.load(folder / "calib.npz")["x"]
            self.samples = iter([{"x": x[i : i + 1]} for i in range(32)])

        def get_next(self) -> dict[str, np.ndarray]:
            return next(self.samples, {})

    logging.disable(logging.WARNING)
    try:
        quantization.quantize_static(folder / "digits.onnx", folder / "supplied.onnx", Samples())
    finally:
        logging.disable(logging.NOTSET)


def installed(name: str, points: str) -> Callable[[Path], None]:
    """What ``pip install`` would leave of the package that a page writes: its entry points."""

    def make(folder: Path) -> None:
        place = folder / f"{name}-1.0.dist-info"
        place.mkdir()
        (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (place / "entry_points.txt").write_text(points)
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()

    return make


def numbers(folder: Path) -> None:
    """The digits network as one that puts out numbers: samples with what it should give."""
    from onnxruntime import InferenceSession

    session = InferenceSession(folder / "digits.onnx", providers=["CPUExecutionProvider"])
    for given, name in (("calib", "seen"), ("eval", "unseen")):
        x = np.load(folder / f"{given}.npz")["x"]
        np.savez(folder / f"{name}.npz", x=x, y=session.run(None, {"x": x})[0])


FILES: dict[str, Callable[[Path], None]] = {
    "how-to/choose.md": numbers,
    "how-to/images.md": images,
    "how-to/audio.md": clips,
    "how-to/text.md": reader,
    "how-to/quantized.md": supplied,
    "how-to/profile.md": installed("our_devices", "[deploy.profiles]\nour-devices = our_devices\n"),
    "how-to/backend.md": installed(
        "reference_backend",
        "[deploy.backends]\nreference = reference_backend:Reference\n"
        "[deploy.profiles]\nreference = reference_backend\n",
    ),
}
"""What a page needs besides the example."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for page in [p.absolute() for p in chosen.pages] or pages():
            folder = Path(scratch) / page.relative_to(PAGES).with_suffix("")
            folder.mkdir(parents=True)
            prepare(page, folder)
            cache = Path(scratch) / "cache"
            if chosen.write:  # a reader's first build finds nothing in the cache
                shutil.rmtree(cache, ignore_errors=True)
            written = run_page(page, folder, cache, check=not chosen.write)
            sys.stdout.write(f"{page.relative_to(PAGES)}: {len(written)} commands\n")
            if chosen.write:
                text = page.read_text(encoding="utf-8")
                places = {
                    str(data_folder(cache)): "~/.local/share/deploy-compiler",
                    str(cache): "~/.cache/deploy-compiler",
                    str(folder): "~/digits",
                }
                page.write_text(with_output(text, written, places), encoding="utf-8")


if __name__ == "__main__":
    main()
