"""Training without labels brings the answers nearer, judged by ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from deploy.compress.channel_fit import kept_channels
from deploy.compress.channel_tune import Tuned, Tuning, completed, tune, views_of
from deploy.compress.ground import Ground
from deploy.compress.layers import parted
from deploy.compress.prune import step as step_module
from deploy.compress.prune.step import run as prune
from deploy.errors import UsageError
from deploy.graph.groups import find_groups
from deploy.graph.shrink import shrink
from deploy.spec.compression import Prune
from deploy.spec.finetune import Augment, Finetune
from deploy.train.units import batches


@pytest.fixture
def case(residual, data):
    groups = find_groups(residual)
    removed = [a.label for f in groups.families for a in f.atoms[: len(f.atoms) // 4]]
    feeds = batches(residual, data(residual, 96), 96, 16)
    return residual, shrink(residual, groups, removed), kept_channels(groups, removed), feeds


def test_answers_come_nearer(case, run, data):
    dense, thin, kept, feeds = case
    torch.set_num_threads(1)
    found = tune(dense, thin, kept, feeds[:4], feeds[4:], Tuning(steps=60, rate=1e-2))
    assert found.after < 0.7 * found.before
    x = next(data(dense, 64, seed=9).batches(64)).feeds
    exact, before, after = run(dense, x), run(thin, x), run(found.graph, x)
    assert np.square(after - exact).mean() < 0.7 * np.square(before - exact).mean()
    # It begins where it is told, and the same settings lead to the same weights.
    again = tune(dense, thin, kept, feeds[:4], feeds[4:], Tuning(steps=60, rate=1e-2))
    np.testing.assert_array_equal(run(again.graph, x), after)


def test_what_makes_it_worse_is_not_taken(case, run):
    dense, thin, kept, feeds = case
    found = tune(dense, thin, kept, feeds[:1], feeds[1:3], Tuning(steps=4, rate=3.0))
    assert found.after == found.before
    x = {"x": feeds[0]["x"].numpy()}
    np.testing.assert_array_equal(run(found.graph, x), run(thin, x))


def test_only_float_images_alone_are_blended():
    image, layouts = {"x": torch.zeros(4, 3, 8, 8)}, {"x": "NCHW"}
    asked = Augment(crop=2, flip=True, mixup=1.0)
    assert views_of(asked, layouts, image) == asked
    for batch in ({"x": image["x"].byte()}, {**image, "other": torch.zeros(4, 2)}):
        assert views_of(asked, layouts, batch) == Augment(crop=2, flip=True)
    assert views_of(asked, {}, {"x": torch.zeros(4, 2)}).identity


def test_the_step_prune_tunes_at_its_end_and_needs_samples_for_it(residual, run, data, tmp_path):
    dataset = data(residual, 96)
    ground = Ground(samples=dataset, given=residual, workdir=tmp_path)
    x = next(data(residual, 64, seed=9).batches(64)).feeds
    exact, noise = run(residual, x), []
    for steps in (0, 60):
        asked = Prune(macs=0.3, criterion="l2", scope="global", per_round=0.5, tune=steps, compensate=False)
        noise.append(np.square(run(prune(asked, residual, ground).model, x) - exact).mean())
    assert noise[1] < noise[0]
    asked = Prune(macs=0.3, criterion="l2", scope="global", tune=5)
    with pytest.raises(UsageError, match="tune = 5 looks at samples"):
        prune(asked, residual, replace(ground, samples=None))
    with pytest.raises(UsageError, match="give one of the two"):
        Prune(macs=0.3, tune=5, finetune=Finetune())


def test_what_the_fit_learned_from_does_not_judge(residual, data, tmp_path, monkeypatch):
    parts = []

    def spy(dense, thin, kept, learn, judge, settings, progress):
        parts.extend((learn, judge))
        return Tuned(thin, 0.0, 0.0)

    monkeypatch.setattr(step_module, "tune", spy)
    dataset = data(residual, 256)
    prune(Prune(macs=0.3, tune=1), residual, Ground(samples=dataset, given=residual, workdir=tmp_path))
    whole = batches(residual, dataset, 256, 32)
    for part, numbers in zip(parts, parted(8), strict=True):
        assert all(torch.equal(b["x"], whole[i]["x"]) for b, i in zip(part, numbers, strict=True))


def test_values_are_compared_where_residual_sums_are_complete(residual):
    assert completed(residual) == ["b", "d", "h", "y"]
