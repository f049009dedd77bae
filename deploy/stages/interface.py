"""How the artifact's inputs are to be fed: what deploy.toml says of them, settled for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deploy.errors import UsageError
from deploy.graph.interface import Form
from deploy.spec.project import InputSection, IoSection
from deploy.spec.tensors import Layout, Normalisation, TensorSpec

_NO_SECTION = InputSection()


def input_forms(
    inputs: Sequence[TensorSpec], sections: Mapping[str, InputSection], io: IoSection
) -> dict[str, Form]:
    """What must change at which of the model's ``inputs``; none are left out that stay as they are.

    Raises UsageError where [io] names an input that is not there or that takes no floats, or where it names
    none and no input looks like an image.
    """
    chosen = _chosen(inputs, sections, io)
    forms = {}
    for spec in inputs:
        section = sections.get(spec.name, _NO_SECTION)
        wanted = spec.name in chosen
        if wanted or (section.normalisation.folded and not section.normalisation.identity):
            forms[spec.name] = Form(
                normalisation=section.normalisation,
                dtype=io.dtype if wanted else None,
                layout=io.layout if wanted else None,
                model_layout=_model_layout(spec, section),
            )
    return forms


def adapted_specs(inputs: Sequence[TensorSpec], forms: Mapping[str, Form]) -> tuple[TensorSpec, ...]:
    """The changed graph's ``inputs``, those in ``forms`` with their layout and the normalisation that the
    graph does itself; that it does none is said too, so that everybody knows that raw numbers are fed."""

    def spec(tensor: TensorSpec) -> TensorSpec:
        form = forms.get(tensor.name)
        if form is None:
            return tensor
        layout: Layout = form.layout or form.model_layout
        folded = form.normalisation.model_copy(update={"folded": True})
        return tensor.model_copy(update={"layout": layout, "normalisation": folded})

    return tuple(spec(tensor) for tensor in inputs)


def fed_specs(inputs: Sequence[TensorSpec], sections: Mapping[str, InputSection]) -> tuple[TensorSpec, ...]:
    """The same with what is left to do to raw data, and with the layouts that deploy.toml gives."""

    def spec(tensor: TensorSpec) -> TensorSpec:
        section = sections.get(tensor.name)
        if section is None:
            return tensor
        if tensor.folded:
            return tensor.model_copy(update={"colours": section.colours})
        normalisation: Normalisation | None = section.normalisation
        if normalisation is not None and normalisation.identity:
            normalisation = None
        layout = tensor.layout if section.layout == "any" else section.layout
        return tensor.model_copy(
            update={"normalisation": normalisation, "layout": layout, "colours": section.colours}
        )

    return tuple(spec(tensor) for tensor in inputs)


def trial_of(
    specs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """Feeds of the model as given, turned into feeds of the changed one: pixels where it takes pixels."""
    generator = np.random.default_rng(seed)
    found = {}
    for spec in specs:
        array = feeds[spec.name]
        shape = tuple(d if isinstance(d, int) else None for d in spec.shape)
        if len(shape) == 4 and not _fits(array.shape, shape):
            order = (0, 2, 3, 1) if spec.layout == "NHWC" else (0, 3, 1, 2)
            array = np.ascontiguousarray(array.transpose(order))
        if spec.raw:
            low = np.iinfo(spec.dtype).min
            array = generator.integers(low, low + 256, array.shape).astype(spec.dtype)
        found[spec.name] = array
    return found


def _fits(found: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return all(want is None or have == want for have, want in zip(found, shape, strict=True))


def _chosen(
    inputs: Sequence[TensorSpec], sections: Mapping[str, InputSection], io: IoSection
) -> frozenset[str]:
    if io.asks_nothing:
        if io.inputs:
            raise UsageError("[io] names inputs, but neither dtype nor layout", hint='add dtype = "uint8"')
        return frozenset()
    known = {spec.name: spec for spec in inputs}
    for name in io.inputs:
        if name not in known:
            raise UsageError(
                f"[io] inputs: the model has no input '{name}'", hint=f"its inputs: {', '.join(known)}"
            )
        if not known[name].dtype.startswith("float"):
            raise UsageError(
                f"[io] inputs: '{name}' takes {known[name].dtype} already, only floats are replaced",
                hint="leave it out",
            )
    found = io.inputs or tuple(
        s.name for s in inputs if _looks_like_an_image(s, sections.get(s.name, _NO_SECTION))
    )
    if not found:
        raise UsageError(
            "[io]: no input of the model looks like an image (float, rank 4, 1 or 3 channels): "
            + ", ".join(map(str, inputs)),
            hint="name those that are meant: [io] inputs",
        )
    return frozenset(found)


def _looks_like_an_image(spec: TensorSpec, section: InputSection) -> bool:
    if len(spec.shape) != 4 or not spec.dtype.startswith("float"):
        return False
    layout = _model_layout(spec, section)
    return layout != "any" and spec.shape[1 if layout == "NCHW" else 3] in (1, 3)


def _model_layout(spec: TensorSpec, section: InputSection) -> Layout:
    """As deploy.toml says, else as the graph tells, else by the number of channels."""
    if section.layout != "any" or spec.layout != "any":
        return section.layout if section.layout != "any" else spec.layout
    if len(spec.shape) != 4 or (spec.shape[1] in (1, 3)) == (spec.shape[3] in (1, 3)):
        return "any"
    return "NCHW" if spec.shape[1] in (1, 3) else "NHWC"
