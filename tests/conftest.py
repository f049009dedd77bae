"""Nothing that a test measures or finds is the user's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty data folder, for processes that tests start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPLOY_DATA", str(tmp_path_factory.mktemp("data")))
        yield
