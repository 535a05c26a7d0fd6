"""FLOPs against torch's own counter, and against the masks that transformers builds; costs told from a config alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from packhorse.backends import find_backend
from packhorse.backends.torch.cost import measure_cost
from packhorse.backends.torch.meta import attention_cost, estimate
from packhorse.backends.torch.weights import load_weights, pad_id
from packhorse.config import EngineConfig
from packhorse.data import ModelDescription
from packhorse.errors import ModelError
from packhorse.model_cost import AttentionCost, ModelCost
from packhorse.models.describe import describe
from packhorse.models.find import find_model
from packhorse.tasks import make_task
from tests.cpu import packable
from tests.cpu.embedders import edit_json
from tests.cpu.engine import load

WINDOW = packable.WINDOW
BODY, CLASSIFIER = "AutoModel", "AutoModelForSequenceClassification"
over_autos = pytest.mark.parametrize("auto", [BODY, CLASSIFIER])
_GEMMA3 = packable.CONFIGS["qwen3"][1] | {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}
_SLIDING_QWEN = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3 of wide heads": ("Qwen3Config", packable.CONFIGS["qwen3"][1] | {"head_dim": 40, "num_key_value_heads": 1}),
    "qwen2 sliding": ("Qwen2Config", packable.CONFIGS["qwen3"][1] | _SLIDING_QWEN),
    "gemma3": ("Gemma3TextConfig", _GEMMA3),
    "gemma3 bidirectional": ("Gemma3TextConfig", _GEMMA3 | {"use_bidirectional_attention": True, "sliding_window": 12}),
    "modernbert decoder": (
        "ModernBertDecoderConfig",
        {k: v for k, v in packable.CONFIGS["modernbert"][1].items() if k != "num_labels"},
    ),
}


def made(kind: str, auto: str = BODY, attention: str = "eager") -> Any:
    """A model of few weights whose attention is plain products, which FlopCounterMode sees on every device."""
    name, values = (packable.CONFIGS | MORE)[kind]
    config = getattr(transformers, name)(**values)
    torch.manual_seed(0)
    return getattr(transformers, auto).from_config(config, attn_implementation=attention).eval()


def cost_of(model: Any, length: int = 9) -> ModelCost:
    """The description's width and layers are wrong: what is counted comes from the model."""
    description = ModelDescription(Path(), None, "feature-extraction", 77, 1, None)
    return measure_cost(model, description, torch.full((2, length), 7))


def per_pair(cost: ModelCost) -> float:
    return sum(kind.flops_per_pair for kind in cost.attention)


# -- against torch's counter, which counts masked pairs too


@over_autos
@pytest.mark.parametrize(
    "kind",
    ["bert", "roberta", "distilbert", "albert", "modernbert", "qwen3", "qwen3 of wide heads", "llama", "gpt2", "mpnet"],
)
def test_flops_are_those_that_torch_counts(kind: str, auto: str) -> None:
    model = made(kind, auto)
    cost = cost_of(model)
    for rows, length in ((1, 2), (1, 17), (3, 64), (2, 131)):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(input_ids=torch.full((rows, length), 7))
        seen = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
        linear = sum(seen.get(f"aten.{op}", 0) for op in ("mm", "addmm"))
        assert linear == cost.per_token * rows * length + cost.per_row * rows
        expected = linear + per_pair(cost) * rows * length**2
        assert sum(seen.values()) == pytest.approx(expected, rel=0.01)
        # A rotary embedding is a product too, 2 FLOPs a frequency and token.
        assert 0 <= sum(seen.values()) - expected <= 2 * 2 * 64 * rows * length


@pytest.mark.parametrize("kind", [*packable.PACKED, "mpnet", "gemma2", *MORE])
def test_no_implementation_of_attention_and_no_length_changes_the_cost(kind: str) -> None:
    model = made(kind)
    eager = cost_of(model)
    assert eager == cost_of(model, 2) == cost_of(model, 16)
    if model._supports_sdpa:
        assert eager == cost_of(made(kind, attention="sdpa"))


def test_layers_without_a_visible_product_count_by_the_description() -> None:
    from transformers import AttentionInterface

    def hidden(_module: Any, query: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        return query.transpose(1, 2).contiguous(), None

    model, plain = made("mistral"), made("mistral")
    AttentionInterface.register("hidden_products", hidden)
    model.set_attn_implementation("hidden_products")
    description = ModelDescription(Path(), None, "feature-extraction", 2, 64, None)
    assert measure_cost(model, description, torch.full((2, 9), 7)) == cost_of(plain)


# -- against masks


def pairs_of_masks(model: Any, length: int) -> list[int]:
    """Unmasked (query, key) pairs of every attention layer that ran, from the masks that eager attention was given."""
    found = []

    def before(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        found.append(length**2 if mask is None else int((mask[0, 0] > -1).sum()))

    layers = [m for m in model.modules() if isinstance(getattr(m, "is_causal", None), bool)]
    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    with torch.inference_mode():
        model(input_ids=torch.full((1, length), 7))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    "kind",
    ["bert", "modernbert", "eurobert", "llama", "qwen3", "mistral", "gemma2", *MORE],
)
def test_pairs_are_those_that_the_masks_of_transformers_leave(kind: str) -> None:
    model = made(kind)
    cost = cost_of(model)
    num_layers = model.config.num_hidden_layers
    for length in (1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW - 1, 2 * WINDOW, 2 * WINDOW + 1, 61):
        pairs = pairs_of_masks(model, length)
        assert len(pairs) == num_layers
        expected = sum(pairs) * per_pair(cost) / num_layers  # these models' layers are equally wide
        counted = sum(k.flops_per_pair * float(k.num_pairs(np.array([length]))[0]) for k in cost.attention)
        assert counted == pytest.approx(expected, rel=1e-12)


def test_kinds_of_layers() -> None:
    """By hand: 4 x 64 FLOPs a pair and layer, 4 heads of 16."""
    assert cost_of(made("bert")).attention == (AttentionCost(2 * 256.0),)
    assert cost_of(made("llama")).attention == (AttentionCost(2 * 256.0, True),)
    assert cost_of(made("mistral")).attention == (AttentionCost(2 * 256.0, True, WINDOW - 1),)
    assert set(cost_of(made("modernbert")).attention) == {AttentionCost(256.0), AttentionCost(256.0, False, WINDOW)}
    assert cost_of(made("qwen3 of wide heads")).attention == (AttentionCost(2 * 4 * 160.0, True),)


@pytest.mark.parametrize("reach", [None, 0, 1, 6, 100])
@pytest.mark.parametrize("is_causal", [False, True])
def test_pairs_are_those_of_the_definition(is_causal: bool, reach: int | None) -> None:
    lengths = np.array([0, 1, 2, 3, 6, 7, 8, 40, 1])
    expected = []
    for s in lengths:
        i, j = np.indices((s, s))
        seen = np.ones((s, s), bool) if reach is None else abs(i - j) <= reach
        expected.append(int((seen & (j <= i) if is_causal else seen).sum()))
    assert AttentionCost(1.0, is_causal, reach).num_pairs(lengths).tolist() == expected


def test_flops_of_a_shard_are_the_sum_over_its_rows() -> None:
    cost = ModelCost(3.0, 5.0, (AttentionCost(2.0), AttentionCost(7.0, True), AttentionCost(11.0, False, 64)))
    lengths = np.random.default_rng(0).integers(0, 8_192, 65_536)
    rows = [cost.flops(lengths[i : i + 1]) for i in range(0, 65_536, 64)]
    assert cost.flops(lengths[::64]) == pytest.approx(sum(rows), rel=1e-12)
    assert cost.flops(lengths) > cost.flops(lengths[1:])
    assert cost.flops(lengths[:0]) == 0


def test_a_cost_is_itself_after_json() -> None:
    cost = cost_of(made("modernbert", CLASSIFIER))
    assert len(cost.attention) == 2 and cost.per_row > 0
    assert ModelCost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost
    for broken in ({}, {"attention": 3}, cost.to_dict() | {"per_token": "a"}, cost.to_dict() | {"attention": [1.0]}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            ModelCost.from_dict(broken)


# -- from the config alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


def described(folder: Path) -> ModelDescription:
    settings = EngineConfig(model=str(folder))
    return describe(find_model(settings.model, None), settings)


@over_autos
@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "albert", "modernbert", "qwen3", "llama", "mistral", "gpt2", "mpnet"]
)
def test_an_estimate_is_the_cost_of_the_loaded_model(folder: Path, kind: str, auto: str) -> None:
    packable.save(folder, kind, auto)
    description = described(folder)
    reduction = make_task(description, EngineConfig(model=str(folder))).reduction()
    model = load_weights(description, reduction, torch.float32)
    pad_id(model.config)
    measured = measure_cost(model, description, torch.full((2, 11), 7))
    (folder / "model.safetensors").unlink()
    found = estimate(description)
    assert found.cost == measured
    parameters = {id(p): p for p in model.parameters()}.values()
    assert found.num_parameters == sum(p.numel() for p in parameters)
    assert found.weight_bytes_fp32 == sum(p.numel() * p.element_size() for p in parameters)


@pytest.mark.parametrize("task", [BODY, CLASSIFIER])
def test_an_estimate_is_the_cost_of_an_engine(folder: Path, task: str) -> None:
    with load(packable.save(folder, "modernbert", task), precision="fp32", backend="torch") as engine:
        assert estimate(described(folder)).cost == engine._loader.model("fp32").cost


def test_an_estimate_runs_no_code_of_the_folder(folder: Path) -> None:
    description = described(packable.save(folder, "bert", BODY))
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Model: ...\n")
    edit_json(folder / "config.json", auto_map={"AutoModel": "code.Model", "AutoConfig": "code.Model"}, model_type="no")
    with pytest.raises(ModelError, match="cost cannot be told"):
        estimate(description)
    assert not (folder / "ran").exists()
    assert attention_cost(description) == (AttentionCost(4.0 * 64 * 2),)


def test_a_model_that_looks_at_numbers_has_no_estimate(tmp_path: Path) -> None:
    """BART's classifier counts the end tokens of every row."""
    from tests.cpu import architectures

    folder = architectures.save(tmp_path / "bart", "bart", CLASSIFIER)
    with pytest.raises(ModelError, match="cost cannot be told"):
        estimate(described(folder))


# -- weights


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield


@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino"])
def test_weight_bytes_are_those_of_the_weights(folder: Path, own_cache: None, backend: str) -> None:
    for package in {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}.get(backend, ()):
        pytest.importorskip(package)
    packable.save(folder, "bert", BODY, hidden_size=128, intermediate_size=512)
    precisions = [p for p in ("fp32", "int8") if p in find_backend(backend).supported_precisions("cpu")]
    seen = {}
    for precision in precisions:
        with load(folder, precision=precision, backend=backend) as engine:
            seen[precision] = engine._loader.model(precision).weight_bytes
    parameters = estimate(described(folder)).weight_bytes_fp32
    if backend == "torch":
        assert seen["fp32"] == parameters
    else:  # without the pooler, which no embedding reads, and with the graph
        pooler = 4 * (128 * 128 + 128)
        assert parameters - pooler <= seen["fp32"] <= 1.1 * parameters + 100_000
    assert seen.get("int8", 0) < 0.7 * seen["fp32"]


def test_shared_weights_count_once(folder: Path) -> None:
    packable.save(folder, "albert", BODY, num_hidden_layers=6)
    with load(folder, precision="fp32", backend="torch") as engine:
        model = engine._loader.model("fp32")
    assert model.weight_bytes == estimate(described(folder)).weight_bytes_fp32
    assert model.cost.attention == (AttentionCost(6 * 256.0),)
