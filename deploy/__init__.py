"""deploy: a trained model in, the smallest and fastest artifact each device can run out, proved on the host.

    import deploy

    bundle = deploy.build("model.onnx", target="x86-cpu", data="calib.npz")
    with deploy.open_bundle("dist/x86-cpu") as runner:
        outputs = runner.run({"x": batch})

The names below load on first use (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.bundle.read import Bundle, open_bundle
    from deploy.errors import DeployError
    from deploy.pipeline import build, build_all
    from deploy.spec.project import Budget
    from deploy.stages.request import Request

__version__ = "0.1.0"
__all__ = ["Budget", "Bundle", "DeployError", "Request", "__version__", "build", "build_all", "open_bundle"]

_HOME = {
    "Budget": "deploy.spec.project",
    "Bundle": "deploy.bundle.read",
    "DeployError": "deploy.errors",
    "Request": "deploy.stages.request",
    "build": "deploy.pipeline",
    "build_all": "deploy.pipeline",
    "open_bundle": "deploy.bundle.read",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'deploy' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
