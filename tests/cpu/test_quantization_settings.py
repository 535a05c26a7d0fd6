"""Who quantizes, with which settings, and what is refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from packhorse.backends.torch.model import TorchModel
from packhorse.backends.torch.quantization import choice, own
from packhorse.backends.torch.quantization.choice import check_unquantized, is_row_independent, method_of
from packhorse.backends.torch.quantization.options import quantization_options
from packhorse.data import Adapter
from packhorse.errors import ModelError, UsageError
from packhorse.generation import Quantization
from tests.cpu.quantizable import request, save

BNB, AO, AUTO = Quantization("bitsandbytes"), Quantization("torchao"), Quantization()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of packages that are there; a test may take some away."""
    here = {"bitsandbytes", "accelerate", "torchao"}
    monkeypatch.setattr(choice, "is_installed", lambda name: name in here)
    monkeypatch.setattr(own, "is_installed", lambda name: name in here)
    return here


@pytest.mark.parametrize(
    ("precision", "asked", "device", "generates", "expected"),
    [
        ("int8", AUTO, "cpu", False, "static"),
        ("int8", AUTO, "cpu", True, "bitsandbytes"),
        ("int8", AUTO, "cuda:0", False, "bitsandbytes"),
        ("int8", BNB, "cpu", False, "bitsandbytes"),
        ("int8", AO, "cpu", False, "torchao"),
        ("int4", AUTO, "cpu", False, "bitsandbytes"),
        ("int4", AUTO, "mps", True, "torchao"),
        ("fp8", AUTO, "cuda", True, "torchao"),
    ],
)
def test_who_quantizes(
    installed: set[str], precision: str, asked: Quantization, device: str, generates: bool, expected: str
) -> None:
    assert method_of(precision, asked, device, generates) == expected


def test_torchao_where_bitsandbytes_lacks_anything(installed: set[str]) -> None:
    installed.remove("accelerate")
    assert method_of("int4", AUTO, "cpu", True) == "torchao"
    with pytest.raises(
        UsageError, match=r"--quantization bitsandbytes: accelerate not installed; pip install 'packhorse\[bnb\]'"
    ):
        method_of("int4", BNB, "cpu", True)


def test_without_any_package_the_message_has_the_commands(installed: set[str]) -> None:
    installed.clear()
    with pytest.raises(UsageError, match=r"packhorse\[bnb\]' or pip install 'packhorse\[torchao\]'"):
        method_of("int4", AUTO, "cpu", True)
    with pytest.raises(UsageError, match=r"--quantization torchao: torchao not installed.*packhorse\[torchao\]"):
        method_of("int8", AO, "cpu", True)
    assert method_of("int8", AUTO, "cpu", False) == "static"


@pytest.mark.parametrize(
    ("precision", "asked", "device", "words"),
    [
        ("fp8", BNB, "cuda", r"--quantization bitsandbytes: has int8 and int4, not fp8; --quantization torchao has it"),
        ("int4", BNB, "mps", r"runs on cpu, cuda, xpu, the device is mps; --quantization torchao runs there"),
        ("int8", Quantization(options={"a": 1}), "cpu", r"--quantization-options a: .*own.*bitsandbytes or torchao"),
    ],
)
def test_what_does_not_go_together(
    installed: set[str], precision: str, asked: Quantization, device: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        method_of(precision, asked, device, generates=False)


def test_full_precision_takes_no_quantization() -> None:
    check_unquantized("bf16", AUTO)
    check_unquantized("int8", BNB)
    with pytest.raises(UsageError, match=r"--quantization torchao: goes with --precision int8, int4, fp8, not bf16"):
        check_unquantized("bf16", AO)


@pytest.mark.parametrize(
    ("precision", "method", "options", "words"),
    [
        ("int8", "bitsandbytes", {"llm_int8_treshold": 5}, r"llm_int8_treshold=\.\.\.: unknown.*did you mean "
         r"'llm_int8_threshold'.*--quantization-options NAME=VALUE, are llm_int8_threshold, llm_int8_skip_modules"),
        ("int8", "bitsandbytes", {"bnb_4bit_quant_type": "nf4"}, r"unknown to bitsandbytes int8"),
        ("int8", "bitsandbytes", {"llm_int8_threshold": "high"}, r"threshold=high: has to be a number of 0 or more"),
        ("int8", "bitsandbytes", {"llm_int8_skip_modules": 3}, r"skip_modules=3: has to be a list of module names"),
        ("int4", "bitsandbytes", {"bnb_4bit_quant_type": "int4"}, r"has to be one of nf4, fp4"),
        ("int4", "bitsandbytes", {"bnb_4bit_use_double_quant": 1}, r"has to be true or false"),
        ("int4", "bitsandbytes", {"bnb_4bit_compute_dtype": "int8"}, r"one of bfloat16, float16, float32"),
        ("int8", "torchao", {"type": "int4_weight_only"}, r"type=int4_weight_only: --precision int8 has "
         r"int8_weight_only, int8_dynamic"),
        ("int8", "torchao", {"type": "int8_dynamik"}, r"did you mean 'int8_dynamic'"),
        ("fp8", "torchao", {"type": "float8_dynamic"}, r"compute capability 8\.9.*the device is cpu.*--precision int8"),
        ("int4", "torchao", {"groupsize": 32}, r"groupsize=\.\.\.: unknown to torchao int4_weight_only; did you mean "
         r"'group_size'"),
        ("int8", "torchao", {"typ": 1}, r"did you mean 'type'\? Legal.* are type, group_size, granularity, modules"),
        ("int4", "torchao", {"group_size": 2.5}, r"group_size=2\.5: has to be a whole number"),
        ("int8", "torchao", {"granularity": "per_column"}, r"one of per_row, per_tensor"),
        ("int8", "torchao", {"type": "int8_dynamic", "act_mapping_type": "none"}, r"act_mapping_type=none: has to be"),
    ],
)  # fmt: skip
def test_settings_are_checked(precision: str, method: str, options: dict[str, Any], words: str) -> None:
    pytest.importorskip(method)
    with pytest.raises(UsageError, match=words):
        quantization_options(precision, Quantization(method, options), "cpu")


def test_settings_arrive_by_their_own_names() -> None:
    pytest.importorskip("bitsandbytes")
    options = {"llm_int8_threshold": 4, "llm_int8_skip_modules": ["up_proj"]}
    eight = quantization_options("int8", Quantization("bitsandbytes", options), "cpu")
    config = eight["quantization_config"].to_dict()
    assert config["load_in_8bit"] and config["llm_int8_threshold"] == 4.0
    assert config["llm_int8_skip_modules"] == ["up_proj"] and eight["device_map"] == {"": "cpu"}
    four = quantization_options("int4", BNB, "cpu")["quantization_config"].to_dict()
    assert four["load_in_4bit"] and four["bnb_4bit_quant_type"] == "nf4" and not four["bnb_4bit_use_double_quant"]
    options = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "fp32", "bnb_4bit_use_double_quant": True}
    four = quantization_options("int4", Quantization("bitsandbytes", options), "cpu")["quantization_config"].to_dict()
    assert (four["bnb_4bit_quant_type"], four["bnb_4bit_compute_dtype"]) == ("fp4", "float32")
    assert four["bnb_4bit_use_double_quant"]


def test_torchao_settings_arrive() -> None:
    pytest.importorskip("torchao")
    options = {"type": "int8_dynamic", "granularity": "per_tensor", "act_mapping_type": "asymmetric"}
    made = quantization_options("int8", Quantization("torchao", options), "cpu")["quantization_config"].quant_type
    assert type(made).__name__ == "Int8DynamicActivationInt8WeightConfig" and made.act_mapping_type.name == "ASYMMETRIC"
    assert type(made.granularity).__name__ == "PerTensor" and not made.set_inductor_config
    options = {"group_size": 32}
    made = quantization_options("int8", Quantization("torchao", options), "cpu")["quantization_config"].quant_type
    assert made.granularity.group_size == 32


def test_only_outliers_of_llm_int8_look_across_rows() -> None:
    assert not is_row_independent("bitsandbytes", "int8", BNB)
    assert is_row_independent("bitsandbytes", "int8", Quantization("bitsandbytes", {"llm_int8_threshold": 0}))
    assert is_row_independent("bitsandbytes", "int4", BNB) and is_row_independent("torchao", "int8", AO)


# -- checkpoints that are quantized already

OWN = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "int4"),
    "gptq-8": ({"quant_method": "gptq", "bits": 8}, "int8"),
    "awq": ({"quant_method": "awq", "w_bit": 4}, "int4"),
    "bitsandbytes": ({"load_in_8bit": True}, "int8"),
    "bitsandbytes-4": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "int4"),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8"),
    "mxfp4": ({"quant_method": "mxfp4"}, "int4"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors",
         "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}, "targets": ["Linear"]}}}, "fp8"),
    "compressed-tensors-4": (
        {"quant_method": "compressed-tensors",
         "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}, "targets": ["Linear"]}}}, "int4"),
    "torchao": ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, "int8"),
    "torchao-fp8": ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Float8WeightOnlyConfig"}}}, "fp8"),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("inside_text_config", [False, True])
def test_the_config_tells_how_a_checkpoint_is_quantized(name: str, inside_text_config: bool) -> None:
    found, precision = OWN[name]
    config: dict[str, Any] = {"quantization_config": found}
    config = {"text_config": config} if inside_text_config else config
    method = "bitsandbytes" if name == "bitsandbytes" else found["quant_method"]
    assert (own.own_quantization(config), own.own_precision(config)) == (method, precision)


def test_a_plain_config_is_not_quantized() -> None:
    for config in ({}, {"quantization_config": None}, {"text_config": {}}):
        assert own.own_quantization(config) is None and own.own_precision(config) is None


@pytest.mark.parametrize(
    ("found", "precision", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "int4", r"by gptq.*pip install gptqmodel optimum"),
        ({"quant_method": "compressed-tensors"}, "int4", r"pip install compressed-tensors"),
        ({"quant_method": "aqlm"}, "int4", r"pip install 'aqlm\[gpu,cpu\]'"),
        ({"quant_method": "secret"}, "int4", r"'secret'.*this version of transformers cannot load; it knows .*gptq"),
    ],
)
def test_what_a_quantized_checkpoint_needs_is_named(
    installed: set[str], tmp_path: Path, found: dict[str, Any], precision: str, words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "quantization_config": found}))
    with pytest.raises(ModelError, match=words):
        TorchModel(request(tmp_path, precision, AUTO))


def test_an_adapter_is_not_merged_into_quantized_weights(installed: set[str], tmp_path: Path) -> None:
    folder = save(tmp_path / "bert", "bert", "AutoModelForSequenceClassification")
    adapter = Adapter(tmp_path / "adapter", None, None, None)
    with pytest.raises(UsageError, match=r"--adapter .*int4 by bitsandbytes.*merge_and_unload.*--precision bf16"):
        TorchModel(request(folder, "int4", AUTO, adapter=adapter))
