"""Makes one file of another quantizer, run by the Python of an environment that has it.

    PYTHON benchmarks/peers_child.py HOW MODEL CALIB OUT [EVAL]

HOW is ort-int8, ort-uint8, nncf, nncf-mixed or nncf-transformer. MODEL is an ONNX file whose sizes are all
known, batch 1; CALIB an .npz of samples under its inputs' names. OUT is an .onnx file for ONNX Runtime's
quantizer and an .xml file for NNCF. With EVAL, an .npz with labels ``y``, NNCF's process also scores both the
float file, in float32, and what it made, in OpenVINO. The last line on stdout ("said: ") has what was done
beyond the usual.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

Sample = dict[str, np.ndarray]


def samples(path: Path) -> list[Sample]:
    with np.load(path) as arrays:
        inputs = {k: arrays[k] for k in arrays if k != "y" and not k.startswith("y.")}
    count = len(next(iter(inputs.values())))
    return [{k: v[i : i + 1] for k, v in inputs.items()} for i in range(count)]


def onnx_runtime(model: Path, calibration: list[Sample], out: Path, activations: str) -> str:
    """Static, Q/DQ, weights int8 by channel, on the file as `quant_pre_process` leaves it."""
    import onnx
    import onnx.version_converter
    from onnxruntime import quantization
    from onnxruntime.quantization import QuantType

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        left = iter(calibration)

        def get_next(self) -> Sample | None:
            return next(self.left, None)

    prepared, said = out.with_name(f"{out.stem}-prepared.onnx"), ""
    given = onnx.load(model)
    if (old := next(o.version for o in given.opset_import if not o.domain)) < 13:
        model = out.with_name(f"{out.stem}-raised.onnx")  # pairs by channel need it
        onnx.save(onnx.version_converter.convert_version(given, 17), model)
        said = f"operator set {old} raised to 17 beforehand"
    try:
        quantization.quant_pre_process(model, prepared)
    except Exception as e:  # noqa: BLE001  # its own hint is to leave this step out
        quantization.quant_pre_process(model, prepared, skip_symbolic_shape=True)
        said = ", ".join(filter(None, (said, f"without symbolic shape inference ({type(e).__name__})")))
    quantization.quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8 if activations == "uint8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    return said


def nncf(model: Path, calibration: list[Sample], out: Path, kind: str) -> str:
    """`nncf.quantize` with nothing said but how many samples there are, or with what ``kind`` says.

    NNCF 3.4 quantizes recurrent layers so that OpenVINO refuses them: then once more without those.
    """
    import nncf as tool
    import openvino

    settings: dict[str, object] = {"subset_size": len(calibration)}
    if kind == "mixed":
        settings["preset"] = tool.QuantizationPreset.MIXED
    if kind == "transformer":
        settings["preset"] = tool.QuantizationPreset.MIXED
        settings["model_type"] = tool.ModelType.TRANSFORMER
    core = openvino.Core()
    said = ""
    made = tool.quantize(core.read_model(model), tool.Dataset(calibration), **settings)
    try:
        core.compile_model(made, "CPU")
    except RuntimeError as e:
        types = [t for t in ("GRUSequence", "LSTMSequence", "RNNSequence") if t in str(e)]
        if not types:
            raise
        kept = tool.IgnoredScope(types=types)
        made = tool.quantize(
            core.read_model(model), tool.Dataset(calibration), ignored_scope=kept, **settings
        )
        said = f"second attempt, {', '.join(types)} left out"
    openvino.save_model(made, out)
    return said


def scored(path: Path, data: Path, settings: dict[str, str]) -> float:
    """Top-1 in OpenVINO, sample by sample, with as many threads as it likes."""
    import openvino

    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    with np.load(data) as arrays:
        labels = arrays["y"].reshape(-1)
    answers = [request.infer(sample)[0].argmax() for sample in samples(data)]
    return float((np.array(answers) == labels).mean())


def main() -> None:
    how, (model, calibration, out, *judged) = sys.argv[1], map(Path, sys.argv[2:])
    tool, _, kind = how.partition("-")
    make = {"ort": onnx_runtime, "nncf": nncf}[tool]
    said = make(model, samples(calibration), out, kind)
    for data in judged:
        before, after = scored(model, data, {"INFERENCE_PRECISION_HINT": "f32"}), scored(out, data, {})
        said = ", ".join(filter(None, (said, f"top-1 {before:.4f} became {after:.4f}")))
    print("\nsaid: " + said)


if __name__ == "__main__":
    main()
