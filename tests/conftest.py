"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import save_null_model


@pytest.fixture(scope="session")
def null_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder for the null backend: two labels, at most 64 tokens."""
    return save_null_model(tmp_path_factory.mktemp("models") / "null")
