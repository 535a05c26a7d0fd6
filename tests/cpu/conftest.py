"""Models made once for all of these tests, without a network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin take the shared cores from each other

from pathlib import Path

import pytest

from tests.models import save_classifier


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three labels each, by kind. The weights are wide, so rows differ far more than the tolerance."""
    root = tmp_path_factory.mktemp("classifiers")
    kinds = ("bert", "roberta", "distilbert")
    return {kind: save_classifier(root / kind, kind, initializer_range=0.6) for kind in kinds}


@pytest.fixture(scope="session")
def bert(classifiers: dict[str, Path]) -> Path:
    return classifiers["bert"]


@pytest.fixture(scope="session")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoders without a head: lower-casing ("uncased") and not ("cased")."""
    from tests.cpu.embedders import save_body

    root = tmp_path_factory.mktemp("bodies")
    return {
        "uncased": save_body(root / "uncased"),
        "cased": save_body(root / "cased", lowercase=False),
    }


@pytest.fixture(scope="session")
def encoder(bodies: dict[str, Path]) -> Path:
    """A plain encoder folder: config, weights, tokenizer, no modules.json."""
    return bodies["uncased"]
