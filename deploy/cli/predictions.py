"""The likeliest classes of each sample: found in the outputs, shown in the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.bundle.report.content import cleaned
from deploy.cli.terminal import Cell, show_note, write_line, write_table
from deploy.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from deploy.graph.ends import Scores

_SHOWN = 20
"""Samples whose classes are shown in the terminal; JSON holds all of them."""
_SUM_TOLERANCE = 0.01


@dataclass(frozen=True)
class Guess:
    """A class with its number, its name where one is known, and its probability where the model says one."""

    number: int
    label: str | None
    probability: float | None


@dataclass(frozen=True)
class Predictions:
    """The guesses of each sample, the likeliest first, read from ``output``."""

    output: str
    guesses: tuple[tuple[Guess, ...], ...]


def predict(
    bundle: Path,
    outputs: Mapping[str, np.ndarray],
    classes: Sequence[str],
    *,
    count: int,
    top: int,
    named: bool,
) -> Predictions | None:
    """The ``top`` classes by the first output of class scores or class numbers; None where there is none.

    Scores become probabilities by a softmax, unless they are some already: the graph ends in Softmax, Sigmoid
    or LogSoftmax, or they add up to 1. Raises DataError where ``named`` classes are not as many as scores.
    """
    for name, array in outputs.items():
        flat = _by_class(array, count)
        if flat is None:
            continue
        if named and flat.dtype.kind == "f" and flat.shape[1] != len(classes):
            raise DataError(
                f"{len(classes)} class names were given, but output '{name}' has {flat.shape[1]} classes",
                hint="one name for each class, in the order of their numbers",
            )
        labels = classes if flat.dtype.kind != "f" or flat.shape[1] == len(classes) else ()
        return Predictions(name, _guesses(flat, labels, top, _scores(bundle, name)))
    return None


def _by_class(array: np.ndarray, count: int) -> np.ndarray | None:
    """(samples, classes) of floats, or (samples, 1) of class numbers; None for every other output."""
    if array.ndim == 0 or len(array) != count:
        return None
    sizes = [size for size in array.shape[1:] if size != 1]
    if array.dtype.kind == "f" and len(sizes) == 1:
        return array.reshape(count, -1)
    return array.reshape(count, 1) if array.dtype.kind in "ui" and not sizes else None


def _guesses(
    flat: np.ndarray, labels: Sequence[str], top: int, kind: Scores
) -> tuple[tuple[Guess, ...], ...]:
    import numpy as np

    def label(number: int) -> str | None:
        return labels[number] if 0 <= number < len(labels) else None

    if flat.dtype.kind != "f":
        return tuple((Guess(int(n), label(int(n)), None),) for n in flat[:, 0])
    chances = _probabilities(flat.astype(np.float64), kind)
    order = np.argsort(-chances, axis=1, kind="stable")[:, :top]
    return tuple(
        tuple(Guess(int(i), label(int(i)), float(row[i])) for i in best)
        for row, best in zip(chances, order, strict=True)
    )


def _probabilities(values: np.ndarray, kind: Scores) -> np.ndarray:
    import numpy as np

    if kind == "log_probabilities":
        return np.asarray(np.exp(values))
    sums = np.abs(values.sum(axis=1) - 1).max() <= _SUM_TOLERANCE and values.min() >= 0
    if kind in ("probabilities", "each") or sums:
        return values
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _scores(bundle: Path, name: str) -> Scores:
    import onnx_ir as ir

    from deploy.bundle.read import GRAPH
    from deploy.graph.ends import scores

    path = bundle / GRAPH
    if not path.is_file():
        return "unknown"
    outputs = {value.name: value for value in ir.load(path).graph.outputs}
    return scores(outputs[name]) if name in outputs else "unknown"


def predictions_json(predictions: Predictions, names: Sequence[str]) -> dict[str, object]:
    """``predictions``: for each sample its ``sample`` (file or number) and its ``top`` classes."""
    return {
        "scores": predictions.output,
        "predictions": [
            {
                "sample": name,
                "top": [
                    {"class": guess.number, "label": guess.label, "probability": guess.probability}
                    for guess in guesses
                ],
            }
            for name, guesses in zip(names, predictions.guesses, strict=True)
        ],
    }


def show_predictions(predictions: Predictions, names: Sequence[str]) -> None:
    """One table a sample where there are few, else the likeliest class of each."""
    shown = predictions.guesses[:_SHOWN]
    if len(shown) <= 3:
        for name, guesses in zip(names, shown, strict=False):
            write_line((name, "strong"))
            write_table(("class", "", "probability"), [_row(guess) for guess in guesses], right=(0, 2))
            write_line()
        return
    rows: list[list[Cell]] = [[name, *_row(g[0])] for name, g in zip(names, shown, strict=False)]
    write_table(("sample", "class", "", "probability"), rows, right=(1, 3))
    if len(predictions.guesses) > len(shown):
        show_note(f"{len(predictions.guesses) - len(shown)} more samples; --json lists all of them")


def _row(guess: Guess) -> list[Cell]:
    chance = "" if guess.probability is None else f"{100 * guess.probability:.1f} %"
    return [str(guess.number), cleaned(guess.label or ""), chance]
