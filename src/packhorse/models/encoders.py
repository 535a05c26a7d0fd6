"""What a folder says about sparse and about multi-vector embeddings."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any, NamedTuple

from packhorse.config import EngineConfig
from packhorse.data import DenseLayer, Reduction
from packhorse.errors import ModelError, UsageError, did_you_mean
from packhorse.late_interaction import LateInteraction
from packhorse.models.encoder_folder import MULTI_VECTOR, SPARSE, EncoderFolder, Module
from packhorse.models.preflight import read_object, understood
from packhorse.models.sentence_transformers import ST_CONFIGS, read_dense, read_prompt
from packhorse.models.weight_sizes import read_stored, weight_files

TOKENS = "token_embeddings"
DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # which of them sentence-transformers takes first
COLBERT_QUERY_LENGTH = 32  # tokens, where a folder of ColBERT does not say it


class Encoder(NamedTuple):
    """pooling: what is left of a forward. late: of a late-interaction model's own folder."""

    pooling: Reduction
    prompt: str
    late: LateInteraction | None = None


def read_encoder(
    root: Path, found: EncoderFolder | None, task: str, settings: EngineConfig, hidden: int
) -> Encoder | None:
    """For the tasks that this file is about; None for others. found: what the folder is, where it is of that task; any
    other model's folder is read as a plain one. Raises ModelError, HostileModelError or UsageError."""
    if task not in (SPARSE, MULTI_VECTOR):
        return None
    if found is None or found.task != task:
        plain = Reduction("sparse", 3, pooling=("max",)) if task == SPARSE else _vectors([], True, settings, hidden)
        return Encoder(plain, read_prompt(root, settings.prompt_name))
    if task == SPARSE:
        return Encoder(_splade(found), read_prompt(root, settings.prompt_name))
    return _late(found, settings, hidden)


# -- SPLADE


def _splade(found: EncoderFolder) -> Reduction:
    """As SpladePooling's config.json says it."""
    path = found.modules[1].place / "config.json"
    config = read_object(path)
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation not in ("relu", "log1p_relu"):
        raise ModelError(
            f"{path}: pooling_strategy {strategy!r} with activation_function {activation!r} is not supported; "
            "supported are max and sum, with relu or log1p_relu"
        )
    most = found.config.get("max_active_dims")
    if most is not None and (not isinstance(most, int) or most < 1):
        raise ModelError(f"{found.root}: max_active_dims {most!r} is no number of dimensions")
    is_twice = activation == "log1p_relu"
    return Reduction("sparse", 3, "log1p" if is_twice else "none", pooling=(strategy,), top_k=most or 0)


# -- late interaction


def _late(found: EncoderFolder, settings: EngineConfig, hidden: int) -> Encoder:
    name = settings.prompt_name
    is_query = name == "query"
    if found.is_stanford:
        late, prompt = _stanford(found.root, is_query), ""
        _check_prompt(name, ("query", "document"))
        return Encoder(_vectors([_own_projection(found.root)], True, settings, hidden), prompt, late)
    layers: list[DenseLayer] = []
    normalizes = found.is_pylate
    for module in found.modules[1:]:
        if module.name == "Dense":
            layers.append(read_dense(module.place, TOKENS))
        elif module.name == "Normalize":
            normalizes |= _normalizes(module)
    late = _pylate(found, is_query) if found.is_pylate else _native(found, is_query)
    prompt = _prompt(found.config.get("prompts") or {}, name)
    return Encoder(_vectors(layers, normalizes, settings, hidden), prompt.removeprefix(late.marker), late)


def _vectors(layers: list[DenseLayer], normalizes: bool, settings: EngineConfig, hidden: int) -> Reduction:
    """A vector a token; --normalize has the last word."""
    if layers and layers[0].in_features != hidden:
        raise ModelError(
            f"{layers[0].folder}: takes vectors of {layers[0].in_features} numbers, and the model's have {hidden}"
        )
    if settings.normalize is not None:
        normalizes = settings.normalize
    width = layers[-1].out_features if layers else hidden
    post: tuple[Any, ...] = (*layers, "normalize") if normalizes else tuple(layers)
    return Reduction("vectors", width, post=post)


def _normalizes(module: Module) -> bool:
    path = module.place / "config.json"
    name = (read_object(path) if path.is_file() else {}).get("module_input_name", "sentence_embedding")
    if name != TOKENS:
        raise ModelError(f"{path}: a Normalize module of {name} is not supported; only of {TOKENS}")
    return True


def _prompt(prompts: dict[str, Any], name: str | None) -> str:
    """That of a document, unless another is asked for. Raises UsageError where there is none."""
    if name is None:
        name = next((usual for usual in DOCUMENT_PROMPTS if prompts.get(usual)), "document")
    _check_prompt(name, ("query", "document", *prompts))
    return str(prompts.get(name) or "")


def _check_prompt(name: str | None, legal: tuple[str, ...]) -> None:
    if name is not None and name not in legal:
        names = list(dict.fromkeys(legal))
        raise UsageError(
            f"--prompt-name {name}: the model has no such prompt; it has {', '.join(map(repr, names))}"
            f"{did_you_mean(name, names)}"
        )


def _native(found: EncoderFolder, is_query: bool) -> LateInteraction:
    """As sentence-transformers writes it: markers are prompts, lengths stand beside the transformer's config."""
    beside = [found.folder / name for name in ST_CONFIGS if (found.folder / name).is_file()]
    sentence = read_object(beside[0]) if beside else {}
    masks = [module.place / "config.json" for module in found.modules if module.name == "MultiVectorMask"]
    mask = read_object(masks[0]) if masks else {}
    if mask.get("keep_only_token_ids"):
        raise ModelError(f"{masks[0]}: keep_only_token_ids is not supported; it is for models that read images")
    role = "query" if is_query else "document"
    skipped = tuple(mask.get("skiplist_words") or ()) if role in (mask.get("skiplist_tasks") or ["document"]) else ()
    late = LateInteraction(is_query, skipped=skipped, length=sentence.get(f"{role}_length"))
    expansion = sentence.get("query_expansion") if is_query else None
    if not expansion or not (masks or expansion.get("attend")):  # without a mask module only what is attended to counts
        return late
    with understood(beside[0]):
        return _expanded(
            late, int(expansion["length"]), bool(expansion.get("attend")), expansion["strategy"] == "fixed",
            expansion.get("token"),
        )  # fmt: skip


def _pylate(found: EncoderFolder, is_query: bool) -> LateInteraction:
    """As PyLate writes it: all in one file, punctuation skipped and queries expanded unless it says otherwise."""
    config, role = found.config, "query" if is_query else "document"
    words = config.get("skiplist_words")
    skipped = () if is_query else tuple(string.punctuation if words is None else words)
    late = LateInteraction(is_query, config.get(f"{role}_prefix") or "", skipped, config.get(f"{role}_length"))
    if not is_query or config.get("do_query_expansion") is False:
        return late
    attends = config.get("attend_to_expansion_tokens", config.get("attend_to_mask_tokens"))
    return _expanded(late, late.length or COLBERT_QUERY_LENGTH, bool(attends), True, None)


def _stanford(root: Path, is_query: bool) -> LateInteraction:
    """As Stanford's ColBERT writes it, in artifact.metadata; what is not said there has its defaults."""
    path = root / "artifact.metadata"
    config = read_object(path) if path.is_file() else {}
    if is_query:
        late = LateInteraction(True, config.get("query_token_id") or "[unused0]")
        length = config.get("query_maxlen") or COLBERT_QUERY_LENGTH
        return _expanded(late, int(length), bool(config.get("attend_to_mask_tokens")), True, None)
    skipped = tuple(string.punctuation) if config.get("mask_punctuation", True) else ()
    return LateInteraction(False, config.get("doc_token_id") or "[unused1]", skipped, config.get("doc_maxlen"))


def _expanded(late: LateInteraction, to: int, attends: bool, is_fixed: bool, token: str | None) -> LateInteraction:
    length = to if is_fixed else late.length and max(late.length, to)
    return LateInteraction(late.is_query, late.marker, late.skipped, length, to, token, attends, is_fixed)


def _own_projection(root: Path) -> DenseLayer:
    """linear.weight among the transformer's own weights."""
    found = {stored.name: stored.shape for stored in read_stored(weight_files(root))}.get("linear.weight")
    if found is None or len(found) != 2:
        raise ModelError(f"{root}: a ColBERT checkpoint without linear.weight, its projection")
    return DenseLayer(str(root), found[1], found[0], bias=False, activation="Identity")
