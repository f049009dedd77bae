"""Every kind of hazard in words: what it means, and what to do. Documents are made of it.

``weights`` and ``graph`` are seen before any data, ``samples`` on a few samples before calibration,
``artifact`` in what was built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Kind:
    """``when`` it is seen, ``what`` happens, and what to ``do``."""

    when: Literal["graph", "weights", "samples", "artifact"]
    what: str
    do: str


KINDS: dict[str, Kind] = {
    "dynamic-batch": Kind("graph", "The batch is free.", "Nothing, or pin it with `--shape`."),
    "dynamic-shape": Kind("graph", "A size behind the batch is free.", "Pin it with `--shape`."),
    "swish": Kind(
        "graph",
        "Small negative values share one scale with large positive ones.",
        "Give data: they say whether that costs anything (`swish-range`).",
    ),
    "softmax": Kind("graph", "Eight bits make its exponentials coarse.", "Nothing: it stays float."),
    "normalization": Kind("graph", "It needs more than 8 bits.", "Nothing: it stays float."),
    "recurrent": Kind(
        "graph", "Rounding adds up over the steps.", "Nothing: it stays float where that costs too much."
    ),
    "data-dependent": Kind(
        "graph", "How many rows come out depends on the data.", "Cut the graph before it."
    ),
    "selection": Kind("graph", "Scores within one step tie.", "Keep what makes them float (`exclude`)."),
    "embedding": Kind("graph", "A table is looked up, not multiplied.", "Nothing: 8 bits make it smaller."),
    "wide-range": Kind("graph", "The result spans orders of magnitude.", "Leave that chain float."),
    "concat-ranges": Kind(
        "samples",
        "An operand of a Concat is much narrower than another, and its readers listen to it; without data: "
        "it is bounded and the others are not.",
        "Scale the operands alike before the Concat and divide in what follows, or keep it float.",
    ),
    "detection-head": Kind(
        "graph", "Scores and boxes share one scale.", "End the graph at the operands, or leave it float."
    ),
    "sigmoid-output": Kind("graph", "Probabilities below 0.002 become 0.", "End at the logits."),
    "dead-channel": Kind("weights", "Channels without weights only pass a bias on.", "Prune them."),
    "depthwise-range": Kind(
        "weights", "Weights of depthwise channels differ much.", "Scales per channel, or equalize."
    ),
    "outlier-channel": Kind("weights", "One channel's weights reach far.", "Scales per channel."),
    "outlier-weight": Kind(
        "weights", "One weight leaves the others few levels.", "Observer `mse`, or float."
    ),
    "bias-overflow": Kind("weights", "A bias does not fit int32.", "Prune the channel."),
    "small-variance": Kind(
        "weights", "Batch norm blows channels up that hardly vary.", "Scales per channel, or prune them."
    ),
    "float16-overflow": Kind(
        "weights", "A constant is infinite in float16.", "Keep it float32, or bound it."
    ),
    "float16-underflow": Kind("weights", "Constants are 0 in float16.", "Mind divisors."),
    "dead-activation": Kind(
        "samples",
        "Channels behind an activation never changed; the text says what the network would save without "
        "them.",
        "Look at them over all data, then prune them.",
    ),
    "swish-range": Kind(
        "samples",
        "The lobe below zero of a swish, hard-swish or GELU has few levels, and what reads it drowns in "
        "rounding.",
        "Bound the activation (clip at 6), or exclude what reads it.",
    ),
    "depthwise-activation": Kind(
        "samples",
        "What a depthwise layer reads or makes has channels of very unlike ranges under one scale.",
        "Equalize with the layer before, or exclude it.",
    ),
    "outlier-activation": Kind(
        "samples",
        "A few features reach far in what a product or a normalization reads, as after LayerNorm in "
        "transformers.",
        "Move them into the weights (SmoothQuant), or exclude what reads it.",
    ),
    "add-ranges": Kind(
        "samples",
        "One operand of an Add disappears beside the other.",
        "Look for an outlying channel in the wide one, or exclude it.",
    ),
    "attention-logits": Kind(
        "samples",
        "One step of a Softmax's quantized input changes exponentials much, often by a mask of large "
        "numbers.",
        "Mask with -inf: such values stay float. Or exclude the Softmax and what feeds it.",
    ),
    "softmax-levels": Kind(
        "samples",
        "Much of the probability lies in entries that become 0, as in attention over many tokens.",
        "Exclude the product that reads it.",
    ),
    "tied-scores": Kind(
        "samples",
        "The two best scores often fall into one step, so the answer is chance.",
        "Exclude what makes the scores.",
    ),
    "saturation": Kind(
        "samples",
        "Pairs of products leave 16 bits on a CPU without 8-bit dot products; emulated exactly, with the "
        "share of pairs and the error of the result.",
        "Weights of 7 bits never do: build for `x86-avx2`, from the float model where it came quantized; in "
        "a profile of your own `weight_bits = 7`.",
    ),
    "partitions": Kind("artifact", "The file runs in several parts.", "See the nodes named: they split it."),
    "float-outputs": Kind("artifact", "Outputs are floats.", "`[io] outputs` makes integers of them."),
    "float": Kind("artifact", "Operations on a microcontroller are float.", "Give calibration data."),
}
