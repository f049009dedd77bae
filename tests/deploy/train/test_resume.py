"""A training that is stopped and started again ends as one that never was, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.data.dataset import Dataset
from deploy.errors import UsageError
from deploy.frontend import onnx_file
from deploy.progress import Silent
from deploy.spec.finetune import Augment, Distill, FeaturePair, Finetune
from deploy.train.finetune import finetune
from deploy.train.loader import open_loader

Equal = Callable[[ir.Model, ir.Model], bool]

FULL = Finetune(
    epochs=3, batch=64, optimizer="adamw", lr=0.01, ema=0.8,
    augment=Augment(crop=2, flip=True, mixup=0.3, cutmix=0.3),
)  # fmt: skip


class Pulled(Silent):
    """The plug is pulled after so many batches."""

    def __init__(self, after: int) -> None:
        self.after = after

    def advance(self, done: int, total: int) -> None:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt


STEPS = {
    "everything": FULL,
    "plain": Finetune(epochs=2, batch=64, lr=0.05),
    "taught": Finetune(epochs=2, batch=64, lr=0.02, distill=Distill(temperature_end=1)),
    "inner values": Finetune(
        epochs=2, batch=64, distill=Distill(features=(FeaturePair(student="e", teacher="e"),), alpha=0.9)
    ),
}


@pytest.mark.parametrize("what", STEPS)
def test_stopped_after_every_few_batches(
    what: str, tiny: ir.Model, train: Dataset, validation: Dataset, tmp_path: Path, equal: Equal
) -> None:
    step = STEPS[what]
    small = validation.select(np.arange(50))

    def go(folder: str, progress: Silent) -> ir.Model:
        trained = finetune(
            tiny, step, train=train, validation=small, workdir=tmp_path / folder, seed=5, checkpoint_s=0,
            progress=progress,
        )  # fmt: skip
        histories[folder] = trained.history
        return trained.model

    histories: dict[str, object] = {}
    whole = go("whole", Silent())
    for after in (1, 0, 3, 2):
        with pytest.raises(KeyboardInterrupt):
            go("pieces", Pulled(after))
    assert equal(go("pieces", Silent()), whole)
    assert histories["pieces"] == histories["whole"]


def test_the_disk_may_fill_or_empty_meanwhile(
    tiny: ir.Model, train: Dataset, tmp_path: Path, equal: Equal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found at the start holds: whether samples are unpacked, and teachers' answers kept."""
    monkeypatch.setattr("deploy.train.finetune.open_loader", partial(open_loader, in_memory=1))
    used = shutil.disk_usage(tmp_path)
    free = {"little": used._replace(free=0), "much": used._replace(free=10**12)}
    step = STEPS["taught"]

    def go(folder: str, disk: str, progress: Silent) -> ir.Model:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free[disk])
        return finetune(
            tiny, step, train=train, workdir=tmp_path / folder, seed=5, checkpoint_s=0, progress=progress
        ).model

    ended = {}
    for first, then in (("little", "much"), ("much", "little")):
        whole = go(f"{first} all along", first, Silent())
        with pytest.raises(KeyboardInterrupt):
            go(first, first, Pulled(3))
        ended[first] = go(first, then, Silent())
        assert equal(ended[first], whole), first
    assert not equal(ended["little"], ended["much"]), "another order of samples"
    assert list((tmp_path / "much").glob("samples-*")) and list((tmp_path / "much").glob("teacher-*"))


def test_what_training_began_with_and_has_no_room_any_more_is_told(
    tiny: ir.Model, train: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.train.finetune.open_loader", partial(open_loader, in_memory=1))
    with pytest.raises(KeyboardInterrupt):
        finetune(tiny, STEPS["plain"], train=train, workdir=tmp_path, checkpoint_s=0, progress=Pulled(2))
    (unpacked,) = tmp_path.glob("samples-*")
    shutil.rmtree(unpacked)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match=r"no space left for it, and the training .* began with it"):
        finetune(tiny, STEPS["plain"], train=train, workdir=tmp_path)


CHILD = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from deploy.data.dataset import open_dataset
from deploy.frontend import onnx_file
from deploy.graph.summary import tensor_specs
from deploy.spec.finetune import Finetune
from deploy.train.finetune import finetune

folder = Path(sys.argv[1])
step = Finetune.model_validate_json(sys.argv[3])
model = onnx_file.read(folder / "tiny.onnx").model
data = open_dataset(sys.argv[2], tensor_specs(model.graph.inputs))

torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # what torch imports at first use

def train(name):
    trained = finetune(model, step, train=data, workdir=folder / name, seed=5, threads=1, checkpoint_s=0)
    onnx_file.write(trained.model, folder / f"{name}.onnx")

def written():
    path = folder / "pieces" / "checkpoint.bin"
    return path.stat().st_mtime_ns if path.exists() else 0

def child(name, wait):
    begun, before = time.monotonic(), written()
    pid = os.fork()
    if not pid:
        try:
            train(name)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if wait is not None:
        while written() == before:
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return status, time.monotonic() - begun

status, took = child("whole", None)
assert status == 0
killed = 0
for share in json.loads(sys.argv[4]):
    status, _ = child("pieces", share * took)
    killed += os.WIFSIGNALED(status)
    if not os.WIFSIGNALED(status):
        break
status, _ = child("pieces", None)
assert status == 0
print(killed)
"""


def test_killed_at_any_moment(
    tiny: ir.Model, train: Dataset, example: Path, tmp_path: Path, equal: Equal
) -> None:
    """SIGKILL at drawn moments after a checkpoint. Children are forks of one process, which imports once and
    computes nothing."""
    onnx_file.write(tiny, tmp_path / "tiny.onnx")
    step = FULL.model_copy(update={"epochs": 5, "batch": 16})
    moments = np.random.default_rng().uniform(0.0, 0.2, 3)
    arguments = (str(tmp_path), str(example / "calib.npz"), step.model_dump_json(), json.dumps(list(moments)))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1, f"the runs had ended before they were killed, at {moments}"
    whole, pieces = (onnx_file.read(tmp_path / f"{name}.onnx").model for name in ("whole", "pieces"))
    assert equal(whole, pieces), f"killed at {moments}"
