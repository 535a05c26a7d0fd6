"""What a model folder says: task, lengths, labels, and a sentence-transformers folder's modules, honoured whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.config import EngineConfig
from packhorse.data import DenseLayer, ModelDescription, Reduction
from packhorse.errors import HostileModelError, ModelError, UsageError, did_you_mean
from packhorse.models.find import Found
from packhorse.models.preflight import inside, read_json

TASKS = ("text-classification", "feature-extraction")
# A tokenizer that was saved without a limit says 1e30.
NO_LIMIT = 10_000_000
ST_POOLING = {"mean": "mean", "cls": "cls", "max": "max", "lasttoken": "last"}
ST_LEGACY_POOLING = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
POOL_ORDER = ("cls", "max", "mean", "last")  # in which sentence-transformers concatenates the legacy flags
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
ST_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


def describe(found: Found, settings: EngineConfig) -> ModelDescription:
    """Raises ModelError, UsageError or HostileModelError, each naming the file and what it says."""
    modules = _modules(found.folder)
    folder = inside(found.folder, modules[0]["path"], found.folder / "modules.json") if modules else found.folder
    config = read_json(folder / "config.json")
    tokenizer = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    sentence: dict[str, Any] = next(
        (read_json(folder / n) for n in ST_CONFIGS if modules and (folder / n).is_file()), {}
    )
    architecture = (config.get("architectures") or [""])[0]
    task = _task(settings.task, architecture, bool(modules))
    hidden = _first(config, "hidden_size", "d_model", "n_embd", "dim")
    if hidden is None:
        raise ModelError(f"{folder / 'config.json'}: no hidden_size in it; is this a text model?")
    heads = _first(config, "num_attention_heads", "n_head", "n_heads") or 1
    labels = _labels(config, folder / "config.json") if task == "text-classification" else ()
    pooling, include_prompt = _pooling(found.folder, modules, settings, int(hidden))
    return ModelDescription(
        name=found.name,
        folder=folder,
        commit=found.commit,
        task=task,
        architecture=architecture,
        model_type=str(config.get("model_type", "")),
        hidden_size=int(hidden),
        num_layers=int(_first(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers") or 0),
        attention_width=int(config.get("head_dim") or hidden // heads) * heads,
        is_causal="ForCausalLM" in architecture or bool(config.get("is_decoder")),
        max_length=_max_length(config, tokenizer, sentence),
        pad_token_id=config.get("pad_token_id"),
        labels=labels,
        problem_type=config.get("problem_type"),
        pooling=pooling,
        prompt=_prompt(found.folder, settings.prompt_name),
        include_prompt=include_prompt,
        lower_case=bool(sentence.get("do_lower_case", False)),
    )


def _first(config: dict[str, Any], *names: str) -> Any:
    return next((config[n] for n in names if config.get(n) is not None), None)


def _task(asked: str, architecture: str, is_sentence_transformer: bool) -> str:
    if asked != "auto":
        return asked
    if is_sentence_transformer or architecture.endswith(("Model", "Encoder")):
        return "feature-extraction"
    if architecture.endswith("ForSequenceClassification"):
        return "text-classification"
    raise UsageError(
        f"the model's architecture is {architecture or 'not named in config.json'}: no task can be read from it. "
        f"Say --task ({' or '.join(TASKS)}); feature-extraction embeds with the body of any encoder"
    )


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


def _modules(folder: Path) -> list[dict[str, str]]:
    """modules.json, checked; empty for a folder that is no embedding model of sentence-transformers."""
    path = folder / "modules.json"
    kind = folder / "config_sentence_transformers.json"
    if not path.is_file() or (
        kind.is_file() and read_json(kind).get("model_type", "SentenceTransformer") != "SentenceTransformer"
    ):
        return []
    modules = [{"path": str(m["path"]), "type": str(m["type"])} for m in read_json(path)]
    for module in modules:
        package, name = module["type"].split(".")[0], module["type"].rsplit(".", 1)[-1]
        if package != "sentence_transformers":
            raise HostileModelError(
                f"{path}: module {module['type']!r} is code from outside sentence-transformers; packhorse runs none"
            )
        if name not in ("Transformer", "Pooling", "Dense", "Normalize"):
            raise ModelError(
                f"{path}: module {module['type']!r} is not supported; "
                "supported are Transformer, Pooling, Dense, Normalize"
            )
        module["name"] = name
    order = [m["name"] for m in modules]
    if order[:2] != ["Transformer", "Pooling"] or order.count("Pooling") > 1 or order.count("Transformer") > 1:
        raise ModelError(
            f"{path}: modules {' > '.join(order)}; supported is Transformer > Pooling, then Dense and Normalize"
        )
    return modules


def _pooling(
    folder: Path, modules: list[dict[str, str]], settings: EngineConfig, hidden: int
) -> tuple[Reduction, bool]:
    """The reduction to one vector a row, and whether the prompt's tokens are pooled too."""
    pooling: tuple[str, ...] = ("mean",)
    include_prompt = True
    post: list[Any] = []
    for module in modules[1:]:
        place = inside(folder, module["path"], folder / "modules.json")
        if module["name"] == "Pooling":
            pooling, include_prompt = _pooling_modes(place / "config.json")
        elif module["name"] == "Dense":
            post.append(_dense(place))
        else:
            post.append("normalize")
    if settings.pooling is not None:
        pooling = (settings.pooling,)
    if settings.normalize is not None:
        post = [p for p in post if p != "normalize"] + ["normalize"] * settings.normalize
    dense = [p for p in post if isinstance(p, DenseLayer)]
    width = dense[-1].out_features if dense else hidden * len(pooling)
    return Reduction("pool", width=width, pooling=pooling, post=tuple(post)), include_prompt


def _pooling_modes(path: Path) -> tuple[tuple[str, ...], bool]:
    config = read_json(path)
    mode = config.get("pooling_mode")
    if mode is None:
        seen = [name for flag, name in ST_LEGACY_POOLING.items() if config.get(flag)] or ["mean"]
        modes = [m for m in POOL_ORDER if m in seen] + [m for m in seen if m not in POOL_ORDER]
    else:
        modes = [ST_POOLING.get(m, m) for m in ([mode] if isinstance(mode, str) else mode)]
    unknown = [m for m in modes if m not in POOL_ORDER]
    if unknown:
        raise ModelError(
            f"{path}: pooling {', '.join(unknown)} is not supported; supported are {', '.join(POOL_ORDER)}"
        )
    return tuple(modes), bool(config.get("include_prompt", True))


def _dense(folder: Path) -> DenseLayer:
    path = folder / "config.json"
    config = read_json(path)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rsplit(".", 1)[-1]
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise HostileModelError(
            f"{path}: activation_function {activation!r} is not one of torch.nn's {', '.join(ACTIVATIONS)}"
        )
    inputs = (
        config.get("module_input_name", "sentence_embedding"),
        config.get("module_output_name") or "sentence_embedding",
    )
    if inputs != ("sentence_embedding", "sentence_embedding"):
        raise ModelError(
            f"{path}: a Dense module from {inputs[0]} to {inputs[1]} is not supported; only on the sentence embedding"
        )
    return DenseLayer(
        str(folder),
        int(config["in_features"]),
        int(config["out_features"]),
        bool(config.get("bias", True)),
        name,
        bool(config.get("use_residual", False)),
    )


def _prompt(folder: Path, asked: str | None) -> str:
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.is_file() else {}
    prompts = config.get("prompts") or {}
    name = asked if asked is not None else config.get("default_prompt_name")
    if name is None:
        return ""
    if name not in prompts:
        legal = f"it has {', '.join(map(repr, prompts))}" if prompts else "it has none"
        raise UsageError(f"--prompt-name {name}: the model has no such prompt; {legal}{did_you_mean(name, prompts)}")
    return str(prompts[name])
