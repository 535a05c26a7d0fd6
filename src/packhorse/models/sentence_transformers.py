"""A sentence-transformers folder's modules, honoured whole or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.config import EngineConfig
from packhorse.data import DenseLayer, Reduction
from packhorse.errors import HostileModelError, ModelError, UsageError, did_you_mean
from packhorse.models.preflight import inside, read_json, read_object, understood

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


def read_modules(folder: Path) -> list[dict[str, str]]:
    """modules.json, checked; empty for a folder that is no embedding model of sentence-transformers."""
    path = folder / "modules.json"
    kind = folder / "config_sentence_transformers.json"
    if not path.is_file() or (
        kind.is_file() and read_object(kind).get("model_type", "SentenceTransformer") != "SentenceTransformer"
    ):
        return []
    with understood(path):
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


def read_pooling(
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
            post.append(read_dense(place))
        else:
            post.append("normalize")
    if settings.pooling is not None:
        pooling = (settings.pooling,)
    if settings.normalize is not None:
        post = [p for p in post if p != "normalize"] + ["normalize"] * settings.normalize
    dense = [p for p in post if isinstance(p, DenseLayer)]
    if dense and dense[0].in_features != hidden * len(pooling):
        raise UsageError(
            f"--pooling {','.join(pooling)} gives vectors of {hidden * len(pooling)} values, "
            f"and the model's Dense layer takes {dense[0].in_features}: leave out --pooling"
        )
    width = dense[-1].out_features if dense else hidden * len(pooling)
    return Reduction("pool", width=width, pooling=pooling, post=tuple(post)), include_prompt


def _pooling_modes(path: Path) -> tuple[tuple[str, ...], bool]:
    config = read_object(path)
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


def read_dense(folder: Path, of: str = "sentence_embedding") -> DenseLayer:
    """of: what it has to project. Raises ModelError where it is another, HostileModelError for its activation."""
    path = folder / "config.json"
    config = read_object(path)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = checked_activation(activation, path, "activation_function")
    inputs = (config.get("module_input_name", of), config.get("module_output_name") or of)
    if inputs != (of, of):
        raise ModelError(
            f"{path}: a Dense module from {inputs[0]} to {inputs[1]} is not supported; only on the "
            f"{of.replace('_', ' ')}"
        )
    return DenseLayer(
        str(folder),
        int(config["in_features"]),
        int(config["out_features"]),
        bool(config.get("bias", True)),
        name,
        bool(config.get("use_residual", False)),
    )


def checked_activation(activation: str, path: Path, key: str) -> str:
    """Its name in torch.nn. Raises HostileModelError where it is none of the known ones: it would be imported."""
    name = activation.rsplit(".", 1)[-1]
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise HostileModelError(f"{path}: {key} {activation!r} is not one of torch.nn's {', '.join(ACTIVATIONS)}")
    return name


def read_prompt(folder: Path, asked: str | None) -> str:
    path = folder / "config_sentence_transformers.json"
    config = read_object(path) if path.is_file() else {}
    prompts = config.get("prompts") or {}
    name = asked if asked is not None else config.get("default_prompt_name")
    if name is None:
        return ""
    if name not in prompts:
        legal = f"it has {', '.join(map(repr, prompts))}" if prompts else "it has none"
        raise UsageError(f"--prompt-name {name}: the model has no such prompt; {legal}{did_you_mean(name, prompts)}")
    return str(prompts[name])
