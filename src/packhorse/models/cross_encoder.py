"""A sentence-transformers CrossEncoder folder: where its transformer lies, and what its logits go through.

The rules are those of sentence-transformers' CrossEncoder: the activation that the folder names, newest place first,
else a sigmoid where there is one label, and nothing where there are several.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from packhorse.errors import ModelError
from packhorse.models.preflight import inside, read_json, read_object, understood
from packhorse.models.sentence_transformers import checked_activation

KIND = "config_sentence_transformers.json"


class CrossEncoder(NamedTuple):
    folder: Path  # of the transformer itself
    has_modules: bool  # a modules.json says where that is; its settings of sentence-transformers lie there
    activation: str | None  # by its name in torch.nn; None: the number of labels decides


def read_cross_encoder(folder: Path) -> CrossEncoder | None:
    """None for a folder that is none. Raises ModelError for modules that are not computed here, HostileModelError for
    an activation that is not one of torch.nn's."""
    kind = read_object(folder / KIND) if (folder / KIND).is_file() else {}
    if (folder / "modules.json").is_file():
        if kind.get("model_type") != "CrossEncoder":
            return None
        place = _transformer(folder)
        config = read_object(place / "config.json")
        return CrossEncoder(place, True, _named(kind, folder / KIND) or _of_config(config, place / "config.json"))
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    is_one = kind.get("model_type") == "CrossEncoder" or "sbert_ce_default_activation_function" in config
    if not (is_one or "activation_fn" in _own(config, folder / "config.json")):
        return None
    return CrossEncoder(folder, False, _of_config(config, folder / "config.json"))


def score_activation(found: CrossEncoder | None, num_labels: int) -> str:
    """What logits become scores by, as a name in torch.nn; found: None of a folder that is transformers' own."""
    named = found.activation if found else None
    return named or ("Sigmoid" if num_labels == 1 else "Identity")


def _transformer(folder: Path) -> Path:
    path = folder / "modules.json"
    with understood(path):
        modules = [(str(m["path"]), str(m["type"])) for m in read_json(path)]
    kinds = [kind.rsplit(".", 1)[-1] for _, kind in modules]
    if kinds != ["Transformer"] or not modules[0][1].startswith("sentence_transformers."):
        raise ModelError(
            f"{path}: a CrossEncoder of the modules {' > '.join(kinds) or 'none'} is not supported; supported is a "
            "single Transformer, whose head classifies sequences"
        )
    return inside(folder, modules[0][0], path)


def _own(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """What sentence-transformers wrote into config.json."""
    with understood(path):
        return dict(config.get("sentence_transformers") or {})


def _of_config(config: dict[str, Any], path: Path) -> str | None:
    own = _own(config, path)
    if "activation_fn" in own:
        return _named(own, path)
    return _named({"activation_fn": config.get("sbert_ce_default_activation_function")}, path)


def _named(values: dict[str, Any], path: Path) -> str | None:
    name = values.get("activation_fn")
    return None if name is None else checked_activation(str(name), path, "activation_fn")
