"""What a subject's integers lose of the signal: each block alone, and all of them at the outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from deploy.data.dataset import Dataset, enough
from deploy.graph.qdq import insert
from deploy.quantize.candidate import Subject
from deploy.quantize.rung import output_noise
from deploy.quantize.sensitivity import block_sqnr

_OF_BLOCKS, _OF_OUTPUTS = 64, 256
"""Samples at most; fewer where each is large."""


def block_noise(subject: Subject, calibration: Dataset, threads: int) -> Mapping[str, float]:
    """The signal-to-noise ratio of each block in integers, in decibels."""
    return block_sqnr(
        subject.graph,
        subject.blocks,
        subject.assignment(()),
        calibration,
        samples=enough(calibration, _OF_BLOCKS),
        threads=threads,
    )


def network_noise(
    subject: Subject,
    exact: ir.Model,
    calibration: Dataset,
    float_blocks: Collection[str] = (),
    *,
    samples: int | None = None,
    threads: int,
) -> float:
    """Noise over signal at the outputs, of ``samples`` at most, with these blocks float; ``exact`` is the
    network in floats."""
    found = subject.quantization(float_blocks)
    quantized = insert(found.graph, found.assignment.tensors, found.assignment.codes)
    most = enough(calibration, _OF_OUTPUTS)
    count = most if samples is None else min(samples, most)
    return output_noise(exact, quantized, calibration, samples=count, threads=threads)
