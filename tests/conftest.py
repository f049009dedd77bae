"""Nothing that a test measures or finds is the user's own; how tests are shared between processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # how long an example takes says how busy the machine is

MOST_WORKERS = 8
"""Each has fixtures of its own to build, and PyTorch and three runtimes in memory."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: the cores that this process may use; pytest-xdist would count those of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests, the long ones come first: pages, each of which runs whole builds. At
    the end there are short ones left for whoever is idle."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.parent.name != "docs")


@pytest.fixture(scope="session", autouse=True)
def _data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty data folder, for processes that tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOY_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles that the test names by their files are forgotten afterwards."""
    monkeypatch.setattr("deploy.adapter.profiles._FROM_FILES", {})
