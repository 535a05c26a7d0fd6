"""A model's cost from its config alone: built on torch's meta device, where tensors have shapes and no numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from packhorse.backends.torch.cost import ROWS, full_attention, measure_cost
from packhorse.backends.torch.quiet import quiet
from packhorse.backends.torch.weights import pad_id
from packhorse.data import ModelDescription
from packhorse.errors import ModelError
from packhorse.model_cost import AttentionCost, ModelCost

LENGTH = 5  # tokens of the rows that are run; any number gives the same cost
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, NotImplementedError, OSError)


class Estimate(NamedTuple):
    cost: ModelCost
    num_parameters: int  # shared ones once
    weight_bytes_fp32: int


def estimate(description: ModelDescription) -> Estimate:
    """What the model will cost once loaded; no weight is read, and no code of its folder is run.

    Raises ModelError where transformers cannot build the model from its config, or the model looks at numbers on its
    way, which there are none of.
    """
    try:
        with quiet():
            model = _built(description)
            num_parameters = sum(p.numel() for p in model.parameters())
            cost = _cost(model, description)
    except (*FAILURES, ImportError) as error:
        raise ModelError(f"{description.folder}: its cost cannot be told from its config: {error}") from error
    return Estimate(cost, num_parameters, 4 * num_parameters)


def attention_cost(description: ModelDescription) -> tuple[AttentionCost, ...]:
    """Of a graph that came without its torch model; layers x width from the config, over all pairs of tokens, where
    transformers cannot build that model."""
    try:
        return estimate(description).cost.attention
    except ModelError:
        return full_attention(description)


def _built(description: ModelDescription) -> Any:
    """Of the class that load_weights chooses for the task, in eval mode."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(description.folder, local_files_only=True, trust_remote_code=False)
    autos = {"text-classification": AutoModelForSequenceClassification, "text-generation": AutoModelForCausalLM}
    auto = autos.get(description.task, AutoModel)
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=False)
    pad_id(model.config)
    return model.eval()


def _cost(model: Any, description: ModelDescription) -> ModelCost:
    """The forward runs with fake tensors: transformers knows those from tracing, and does not look into them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        return measure_cost(model, description, torch.ones(ROWS, LENGTH, dtype=torch.long))
