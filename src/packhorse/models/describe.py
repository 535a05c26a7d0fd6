"""What a model folder says: task, lengths, labels, pooling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.config import OWN_TASKS, EngineConfig
from packhorse.data import WRITING_TASKS, Adapter, ModelDescription
from packhorse.errors import ModelError, UsageError
from packhorse.models.cross_encoder import CrossEncoder, read_cross_encoder, score_activation
from packhorse.models.encoder_folder import EncoderFolder, find_encoder
from packhorse.models.encoders import read_encoder
from packhorse.models.find import Found
from packhorse.models.preflight import inside, read_object, understood
from packhorse.models.sentence_transformers import ST_CONFIGS, read_modules, read_pooling, read_prompt

TASKS = (*OWN_TASKS, *WRITING_TASKS)
LABELLED = ("text-classification", "token-classification", "zero-shot-classification", "text-ranking")
HEADS = {
    "ForSequenceClassification": "text-classification", "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering", "ForMaskedLM": "fill-mask",
}  # fmt: skip
CAUSAL = ("ForCausalLM", "LMHeadModel")
# A tokenizer that was saved without a limit says 1e30.
NO_LIMIT = 10_000_000


def describe(found: Found, settings: EngineConfig, adapter: Adapter | None = None) -> ModelDescription:
    """Raises ModelError, UsageError or HostileModelError, each naming the file and what it says."""
    modules, ranker = read_modules(found.folder), read_cross_encoder(found.folder)
    folder = inside(found.folder, modules[0]["path"], found.folder / "modules.json") if modules else found.folder
    encoder = find_encoder(found.folder)
    folder = next((other.folder for other in (ranker, encoder) if other), folder)
    config = read_object(folder / "config.json")
    tokenizer = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    has_modules = bool(modules) or (ranker is not None and ranker.has_modules) or encoder is not None
    sentence: dict[str, Any] = next(
        (read_object(folder / n) for n in ST_CONFIGS if has_modules and (folder / n).is_file()), {}
    )
    with understood(folder / "config.json"):
        return _description(found, settings, folder, config, tokenizer, sentence, modules, ranker, encoder, adapter)


def _description(
    found: Found,
    settings: EngineConfig,
    folder: Path,
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    sentence: dict[str, Any],
    modules: list[dict[str, str]],
    ranker: CrossEncoder | None,
    encoder: EncoderFolder | None,
    adapter: Adapter | None,
) -> ModelDescription:
    architecture = (config.get("architectures") or [""])[0]
    asked = adapter.task if adapter and adapter.task and settings.task == "auto" else settings.task
    asked = "text-ranking" if ranker and asked == "auto" else asked
    asked = encoder.task if encoder and asked == "auto" else asked
    is_encoder_decoder = bool(config.get("is_encoder_decoder"))
    task = _task(asked, architecture, bool(modules), is_encoder_decoder)
    _check_kind(task, is_encoder_decoder, folder)
    hidden = _first(config, "hidden_size", "d_model", "n_embd", "dim")
    if hidden is None:
        raise ModelError(f"{folder / 'config.json'}: no hidden_size in it; is this a text model?")
    heads = _first(config, "num_attention_heads", "n_head", "n_heads") or 1
    labels = _labels(config, folder / "config.json") if task in LABELLED else ()
    if labels and adapter and adapter.num_labels not in (None, len(labels)):  # its head has no names for them
        labels = tuple(f"LABEL_{i}" for i in range(adapter.num_labels or 0))
    pooling, include_prompt = read_pooling(found.folder, modules, settings, int(hidden))
    own = read_encoder(found.folder, encoder, task, settings, int(hidden))
    return ModelDescription(
        folder=folder,
        commit=found.commit,
        task=task,
        num_layers=int(_first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers") or 0),
        attention_width=int(config.get("head_dim") or hidden // heads) * heads,
        max_length=_max_length(config, tokenizer, sentence),
        labels=labels,
        problem_type=config.get("problem_type"),
        pooling=own.pooling if own else pooling,
        prompt=own.prompt if own else read_prompt(found.folder, settings.prompt_name),
        include_prompt=include_prompt,
        lower_case=bool(sentence.get("do_lower_case", False)),
        adapter=adapter,
        source="weights" if adapter else found.source,
        dtype=_first(config, "dtype", "torch_dtype"),
        is_encoder_decoder=is_encoder_decoder,
        architecture=architecture,
        score_activation=score_activation(ranker, len(labels)),
        late=own.late if own else None,
        vocab_size=config.get("vocab_size"),
    )


def _first(config: dict[str, Any], *names: str) -> Any:
    return next((config[n] for n in names if config.get(n) is not None), None)


def _task(asked: str, architecture: str, is_sentence_transformer: bool, is_encoder_decoder: bool) -> str:
    if asked != "auto":
        return asked
    is_body = architecture.endswith(("Model", "Encoder")) and not architecture.endswith(("MTModel", "LMHeadModel"))
    if is_sentence_transformer or is_body:
        return "feature-extraction"
    head = next((task for name, task in HEADS.items() if architecture.endswith(name)), None)
    if head is not None:
        return head
    if is_encoder_decoder and architecture.endswith(("ForConditionalGeneration", "MTModel", "LMHeadModel")):
        return "text2text-generation"
    if architecture.endswith(CAUSAL):
        return "text-generation"
    raise UsageError(
        f"the model's architecture is {architecture or 'not named in config.json'}: no task can be read from it. "
        f"Say --task ({' or '.join(TASKS)}); feature-extraction embeds with the body of any encoder"
    )


def _check_kind(task: str, is_encoder_decoder: bool, folder: Path) -> None:
    """Raises UsageError where the task is for the other kind of model."""
    if task == "text-generation" and is_encoder_decoder:
        raise UsageError(f"--task {task}: {folder} reads with an encoder: --task text2text-generation is for those")
    if task in WRITING_TASKS[1:] and not is_encoder_decoder:
        raise UsageError(f"--task {task}: {folder} has no encoder: --task text-generation is for such models")


def _labels(config: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(int(config.get("num_labels", 2)))}
    try:
        by_id = {int(k): str(v) for k, v in names.items()}
        return tuple(by_id[i] for i in range(len(by_id)))
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path}: id2label must number the labels from 0 on; it has {sorted(names)}") from error


def _max_length(config: dict[str, Any], tokenizer: dict[str, Any], sentence: dict[str, Any]) -> int | None:
    """A sentence-transformers limit holds; else the smaller of what tokenizer and position table say."""
    positions = _first(config, "max_position_embeddings", "n_positions")
    limits = [positions, sentence.get("max_seq_length") or tokenizer.get("model_max_length")]
    legal = [int(n) for n in limits if n is not None and 0 < n < NO_LIMIT]
    return min(legal, default=None)
