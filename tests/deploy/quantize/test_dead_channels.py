"""Dead channels where they were put, and their price in closed form."""

import numpy as np

from deploy.data.dataset import open_dataset
from deploy.graph.summary import tensor_specs
from deploy.quantize.data_hazards import data_hazards
from deploy.quantize.dead_channels import FEWEST_NUMBERS, activations, dead_channels, saving
from deploy.quantize.seen import look, of_data

TEXT = """g (float[n, 3, 8, 8] x) => (y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu (a)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p, v)
}"""


def look_at(graph, text, bias, samples=8, **weights):
    arrays = {"w": (8, 3, 3, 3), "v": (4, 8, 3, 3), "b": np.asarray(bias, np.float32), **weights}
    model = graph(text, arrays)
    feeds = np.random.default_rng(0).standard_normal((samples, 3, 8, 8)).astype(np.float32)
    dataset = open_dataset({"x": feeds}, tensor_specs(model.graph.inputs))
    return model, of_data(model, dataset)


def test_channels_that_a_bias_shuts_are_found_and_priced(graph):
    """Two of eight: a quarter of both convolutions goes with them."""
    model, samples = look_at(graph, TEXT, [-100, 0, 0, -100, 0, 0, 0, 0])
    assert activations(model) == {"r": 1}
    (dead,) = dead_channels(model, look(samples.run, activations(model)))
    first, second = 8 * 8 * 8 * 3 * 9, 4 * 4 * 4 * 8 * 9
    assert (dead.count, dead.total) == (2, 8)
    assert dead.macs == 0.25 * (first + second)
    assert dead.parameters == 0.25 * (8 * 3 * 9 + 8 + 4 * 8 * 9)
    assert saving(model, [dead])[0] == 0.25


def test_a_channel_that_a_clip_holds_is_dead_too(graph):
    text = TEXT.replace("Relu (a)", "Clip (a, zero, six)")
    bounds = {"zero": np.float32(0).reshape(()), "six": np.float32(6).reshape(())}
    model, samples = look_at(graph, text, [100, 0, 0, 0, 0, 0, 0, 0], **bounds)
    (dead,) = dead_channels(model, look(samples.run, activations(model)))
    assert dead.count == 1


def test_channels_without_weights_are_known_without_data(graph):
    weight = np.random.default_rng(1).standard_normal((8, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    model, samples = look_at(graph, TEXT, np.zeros(8), w=weight)
    assert dead_channels(model, look(samples.run, activations(model))) == []


def test_silence_of_a_few_numbers_says_nothing(graph):
    """Eight samples of one number each: a feature that is rare would look dead."""
    head = TEXT.partition("r = Relu")[0]
    text = head + "g = GlobalAveragePool (a) r = Relu (g) y = Conv <kernel_shape = [1, 1]> (r, v) }"
    model, samples = look_at(graph, text, [-100] * 8, v=(4, 8, 1, 1))
    seen = look(samples.run, activations(model))
    assert seen["r"].numbers == 8 < FEWEST_NUMBERS
    assert dead_channels(model, seen) == []


def test_the_hazard_is_a_note_with_the_saving(graph, unsigned):
    model, samples = look_at(graph, TEXT, [-100, 0, 0, -100, 0, 0, 0, 0])
    (found,) = data_hazards(model, [unsigned], samples)["unsigned"]
    assert (found.kind, found.severity) == ("dead-activation", "note")
    assert "2 of 8 channels of 1 activation never changed" in found.text
    assert "25.0% fewer MACs" in found.text
    model, samples = look_at(graph, TEXT, np.zeros(8))
    assert data_hazards(model, [unsigned], samples)["unsigned"] == []
