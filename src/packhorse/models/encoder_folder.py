"""Folders of sentence-transformers' SparseEncoder and MultiVectorEncoder, of PyLate and of Stanford's ColBERT: what
they are, and where their transformer lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from packhorse.errors import HostileModelError, ModelError
from packhorse.models.preflight import inside, read_json, read_object, understood

CONFIG = "config_sentence_transformers.json"
SPARSE, MULTI_VECTOR = "sparse-embedding", "multi-vector-embedding"
TASKS = {"SparseEncoder": SPARSE, "MultiVectorEncoder": MULTI_VECTOR, "ColBERT": MULTI_VECTOR}
STANFORD = "HF_ColBERT"  # architecture of a checkpoint that has its projection among the transformer's weights
OF_PYLATE = ("pylate.models.Dense.Dense", "pylate.models.Dense")  # what sentence-transformers' Dense is

SUPPORTED = {
    SPARSE: "a Transformer for fill-mask > SpladePooling",
    MULTI_VECTOR: "a Transformer, then Dense, MultiVectorMask and Normalize",
}
KNOWN: dict[str, tuple[str, ...]] = {
    SPARSE: ("Transformer", "MLMTransformer", "SpladePooling"),
    MULTI_VECTOR: ("Transformer", "Dense", "MultiVectorMask", "Normalize"),
}
INFERENCE_FREE = ("Router", "Asym", "SparseStaticEmbedding", "IDF")


class Module(NamedTuple):
    name: str  # its class
    place: Path


class EncoderFolder(NamedTuple):
    root: Path
    task: str
    config: dict[str, Any]  # of config_sentence_transformers.json
    modules: tuple[Module, ...]  # the transformer first

    @property
    def folder(self) -> Path:
        """Of the transformer itself."""
        return self.modules[0].place

    @property
    def is_pylate(self) -> bool:
        """Whether it is PyLate's own format, which lists neither a mask nor the normalizing."""
        return self.config.get("model_type") == "ColBERT"

    @property
    def is_stanford(self) -> bool:
        return not self.config and len(self.modules) == 1


def find_encoder(root: Path) -> EncoderFolder | None:
    """None for a folder that is no such. Raises ModelError for modules that are not computed here, HostileModelError
    for one that is code from elsewhere."""
    config = read_object(root / CONFIG) if (root / CONFIG).is_file() else {}
    task = TASKS.get(str(config.get("model_type")))
    if task is not None and (root / "modules.json").is_file():
        return EncoderFolder(root, task, config, _modules(root, task))
    own = read_object(root / "config.json") if (root / "config.json").is_file() else {}
    if STANFORD not in (own.get("architectures") or ()) or (root / "modules.json").is_file():
        return None
    return EncoderFolder(root, MULTI_VECTOR, {}, (Module("Transformer", root),))


def _modules(root: Path, task: str) -> tuple[Module, ...]:
    path = root / "modules.json"
    with understood(path):
        listed = [(str(m["type"]), str(m["path"])) for m in read_json(path)]
    for kind, _ in listed:
        _check(kind, task, path)
    modules = tuple(Module(kind.rsplit(".", 1)[-1], inside(root, place, path)) for kind, place in listed)
    order = [module.name.removeprefix("MLM") for module in modules]
    fits = order == ["Transformer", "SpladePooling"] if task == SPARSE else order[:1] == ["Transformer"]
    if not fits or order.count("Transformer") > 1:
        raise ModelError(f"{path}: modules {' > '.join(order) or 'none'}; supported is {SUPPORTED[task]}")
    return modules


def _check(kind: str, task: str, path: Path) -> None:
    """Raises for a module that is not computed here."""
    name = kind.rsplit(".", 1)[-1]
    if kind.split(".")[0] not in ("sentence_transformers", "pylate"):
        raise HostileModelError(
            f"{path}: module {kind!r} is code from outside sentence-transformers; packhorse runs none"
        )
    if name in INFERENCE_FREE:
        raise ModelError(
            f"{path}: module {kind!r} makes it an asymmetric encoder, which reads queries in another way than "
            f"documents (from a table of weights); supported is {SUPPORTED[task]}, the same for both"
        )
    is_foreign = kind.startswith("pylate") and kind not in OF_PYLATE
    if name not in KNOWN[task] or is_foreign:
        raise ModelError(f"{path}: module {kind!r} is not supported; supported is {SUPPORTED[task]}")
