"""A model split over the cpu and the disk gives the whole one's numbers, bit for bit; what cannot be split is said."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from packhorse.backends.torch.layouts import Packed, Padded
from packhorse.backends.torch.placement import (
    Placer,
    check_on_devices,
    execution_devices,
    first_device,
    placed,
    placement_note,
)
from packhorse.backends.torch.reduce import Reducer
from packhorse.backends.torch.weights import auto_class, load_weights
from packhorse.data import Batch, ModelDescription, Reduction, Tokens, offsets_of
from packhorse.devices.inputs import is_split
from packhorse.errors import ModelError, UsageError
from packhorse.generation import Placement
from packhorse.packing import attention as packed_attention

pytest.importorskip("accelerate")

VOCAB = 300
_IDS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZE = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip
_LLAMA = _IDS | _SIZE | {"num_key_value_heads": 2}
_BART = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 128, "init_std": 0.3,
}  # fmt: skip
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
WRITERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("CausalLM", "Llama", _LLAMA),
    "llama-tied": ("CausalLM", "Llama", _LLAMA | {"tie_word_embeddings": True, "num_hidden_layers": 12}),
    "gpt2": ("CausalLM", "GPT2", _IDS | {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 128}),
    "mixtral": ("CausalLM", "Mixtral", _LLAMA | {"num_local_experts": 4}),  # experts are put together, and saved again
    "t5": ("Seq2SeqLM", "T5", _IDS | _T5),
    "bart": ("Seq2SeqLM", "Bart", _IDS | _BART),
}
IDS = torch.randint(3, VOCAB, (3, 17), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(17) >= torch.tensor([[0], [4], [9]])).long()  # padded on the left


def save(auto: Any, kind: str, settings: dict[str, Any], folder: Path) -> Path:
    torch.manual_seed(0)
    auto.from_config(getattr(transformers, f"{kind}Config")(**copy.deepcopy(settings))).save_pretrained(folder)
    return folder


def writer(name: str, folder: Path) -> tuple[Any, Path]:
    task, kind, settings = WRITERS[name]
    auto = getattr(transformers, f"AutoModelFor{task}")
    return auto, save(auto, kind, settings, folder)


def split(auto: Any, folder: Path, placement: Placement) -> tuple[Any, Placer]:
    placer = Placer(placement, "cpu")
    model = auto.from_pretrained(folder, **placer.options(auto, folder)).eval()
    placer.settle(model)
    return model, placer


def share(auto: Any, folder: Path, part: float) -> dict[str, int]:
    """A max_memory under which a part of the weights at most lies on the cpu."""
    model = auto.from_pretrained(folder)
    return {"cpu": int(part * sum(p.numel() * p.element_size() for p in model.parameters())), "disk": 10**9}


# -- identical outputs


@pytest.mark.parametrize("part", [0.6, 0.0], ids=["cpu and disk", "disk alone"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_split_model_writes_the_same(name: str, part: float, tmp_path: Path) -> None:
    auto, folder = writer(name, tmp_path)
    whole = auto.from_pretrained(folder).eval()
    try:
        model, placer = split(auto, folder, Placement("auto", share(auto, folder, part)))
    except ModelError as refusal:
        if part or "upgrade transformers" not in str(refusal):
            raise
        pytest.skip(str(refusal))
    assert is_split(model)
    assert not is_split(whole)
    assert {p.device for p in placed(model)} == ({"cpu", "disk"} if part else {"disk"})
    extra = {"decoder_input_ids": IDS} if name in ("t5", "bart") else {}
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS, **extra).logits, whole(input_ids=IDS, **extra).logits)
        wanted = {"attention_mask": MASK, "max_new_tokens": 12, "do_sample": False}
        assert torch.equal(model.generate(IDS, **wanted), whole.generate(IDS, **wanted))
    placer.close()


LENGTHS = np.array([5, 17, 5, 30, 1])
ROWS = Tokens(np.random.default_rng(0).integers(3, VOCAB, LENGTHS.sum()).astype(np.int32), offsets_of(LENGTHS))
REDUCTIONS = {"classify": Reduction("classify", 3, "softmax"), "pool": Reduction("pool", 64, pooling=("mean",))}


def encoder(kind: str, folder: Path) -> ModelDescription:
    auto = transformers.AutoModelForSequenceClassification if kind == "classify" else transformers.AutoModel
    save(auto, "Bert", _IDS | _SIZE | {"num_labels": 3}, folder)
    task = "text-classification" if kind == "classify" else "feature-extraction"
    return ModelDescription(folder, None, task, num_layers=4, attention_width=64, max_length=128)


def values(model: Any, reduction: Reduction, layout: str) -> torch.Tensor:
    reducer = Reducer(reduction, "cpu")
    if layout == "padded":
        return Padded(model, reducer, "cpu", "sdpa")(Batch(ROWS))
    packed_attention.register()
    model.set_attn_implementation(packed_attention.NAME)
    return Packed(model, reducer, "cpu", "first" if reduction.kind == "classify" else "all", "auto")(Batch(ROWS))


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("kind", REDUCTIONS)
def test_a_split_encoder_gives_the_same(kind: str, layout: str, tmp_path: Path) -> None:
    """Through the backend's own loading and layouts; the head alone is a copy of the model."""
    description, reduction = encoder(kind, tmp_path), REDUCTIONS[kind]
    prefix = "bert." if kind == "classify" else ""
    mapping = {"": "cpu", f"{prefix}encoder.layer.1": "disk", f"{prefix}encoder.layer.3.output": "disk"}
    placer = Placer(Placement(mapping), "cpu")
    options = placer.options(auto_class(reduction), description.folder)
    model = load_weights(description, reduction, torch.float32, None, options)
    placer.settle(model, body_alone=True)
    whole = load_weights(description, reduction, torch.float32)
    assert is_split(model)
    assert torch.equal(values(model, reduction, layout), values(whole, reduction, layout))


# -- where things lie


def test_inputs_go_to_the_device_of_the_first_layer(tmp_path: Path) -> None:
    """Embeddings on the disk have no weights between forwards: their hook says where they run."""
    auto, folder = writer("llama", tmp_path)
    model, _ = split(auto, folder, Placement({"model.embed_tokens": "disk", "model.layers.2": "disk", "": "cpu"}))
    embeddings = model.get_input_embeddings()
    assert embeddings.weight.device == torch.device("meta")
    assert torch.device(embeddings._hf_hook.execution_device) == first_device(model) == torch.device("cpu")
    assert execution_devices(model) == (torch.device("cpu"),)
    seen: list[Any] = []
    embeddings.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    whole = auto.from_pretrained(folder).eval()
    with torch.inference_mode():
        split_logits = model(input_ids=IDS).logits
        assert torch.equal(split_logits, whole(input_ids=IDS).logits)
    assert seen[0].device == first_device(model) == split_logits.device
    assert embeddings.weight.device == torch.device("meta")  # let go of again


def test_what_lies_where(tmp_path: Path) -> None:
    auto, folder = writer("llama-tied", tmp_path)
    model, _ = split(auto, folder, Placement({"model.layers.1": "disk", "model.layers.11.mlp": "disk", "": "cpu"}))
    layer = sum(p.numel() * 4 for p in auto.from_pretrained(folder).model.layers[1].parameters())
    mlp = 3 * 64 * 128 * 4
    on = {p.device: p for p in placed(model)}
    assert on["disk"].modules == ("model.layers.1", "model.layers.11.mlp")
    assert on["disk"].num_bytes == layer + mlp
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    whole = sum(p.numel() * 4 for p in auto.from_pretrained(folder).parameters())  # the tied head once
    assert on["cpu"].num_bytes == whole - layer - mlp + buffers
    assert "disk 0.2 MB (model.layers.1, model.layers.11.mlp); inputs go to cpu" in placement_note(model)
    assert model.model.layers[10].mlp.up_proj.weight.device == torch.device("cpu")  # not taken for model.layers.1


def test_a_weight_that_lies_elsewhere_is_found(tmp_path: Path) -> None:
    auto, folder = writer("llama", tmp_path)
    model, _ = split(auto, folder, Placement({"model.layers.1": "disk", "": "cpu"}))
    check_on_devices(model)
    model.lm_head.to("meta")
    with pytest.raises(ModelError, match=r"lm_head\.weight \(meta, should be cpu\)"):
        check_on_devices(model)


def test_enough_memory_leaves_the_model_whole(tmp_path: Path) -> None:
    auto, folder = writer("llama", tmp_path)
    model, _ = split(auto, folder, Placement("auto"))
    assert not is_split(model)
    assert {p.device for p in model.parameters()} == {torch.device("cpu")}


# -- what is refused, and what is left behind


@pytest.mark.parametrize("limits", [{"cpu": 0.6}, {"cpu": 0.6, "disk": 0.1}], ids=["no disk", "too little disk"])
def test_what_does_not_fit_is_said(limits: dict[str, float], tmp_path: Path) -> None:
    auto, folder = writer("llama", tmp_path)
    whole = share(auto, folder, 1.0)["cpu"]
    placement = Placement("auto", {device: int(part * whole) for device, part in limits.items()})
    words = (
        r"take 0\.7 MB and do not fit into cpu 0\.4 MB.*model\.layers\.1, .* would have to lie on the disk.*"
        r"Raise --max-memory; add disk=1MB to it, or give --offload-folder .*--precision int8 or int4"
    )
    with pytest.raises(ModelError, match=words):
        split(auto, folder, placement)
    if "disk" not in limits:
        model, _ = split(auto, folder, Placement("auto", placement.max_memory, str(tmp_path / "offload")))
        assert is_split(model)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"model.layer.1": "disk", "": "cpu"}, r"has no module model\.layer\.1; did you mean 'model\.layers\.1'\?"),
        (
            {"model.layers": "cpu"},
            r'has no device for model\.embed_tokens, model\.norm.*; name them .* "" for all others',
        ),
        ({"lm_head": "disk", "": "cpu"}, r"lm_head\.weight and model\.embed_tokens\.weight are one tensor"),
    ],
)
def test_a_map_that_is_not_this_models(mapping: dict[str, str], words: str, tmp_path: Path) -> None:
    auto, folder = writer("llama-tied", tmp_path)
    with pytest.raises(UsageError, match=f"--device-map: .*{words}"):
        split(auto, folder, Placement(mapping))


def test_devices_that_are_not_here() -> None:
    with pytest.raises(UsageError, match=r"--max-memory names 99: here are .*cpu, disk"):
        Placer(Placement("auto", {"99": 10**9}), "cpu")
    with pytest.raises(UsageError, match="--device-map names 99: here are"):
        Placer(Placement({"": "99"}), "cpu")


def test_tensor_parallelism_needs_its_processes() -> None:
    with pytest.raises(UsageError, match="--tensor-parallel: is for several processes that have met"):
        Placer(Placement(tensor_parallel=True), "cpu")


def test_the_temporary_offload_folder_is_removed(tmp_path: Path) -> None:
    auto, folder = writer("mixtral", tmp_path)
    model, placer = split(auto, folder, Placement("auto", share(auto, folder, 0.6)))
    offloaded = Path(placer._temporary.name)
    assert list(offloaded.glob("*.experts.*.safetensors"))
    placer.close()
    placer.close()
    assert not offloaded.exists()
    del model
