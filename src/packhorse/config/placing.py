"""Settings of where a model's weights lie, and of who quantizes them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from packhorse.placing import check_together


class PlacementSettings(BaseModel):
    """For models that do not go on one device as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    quantization: Literal["auto", "bitsandbytes", "torchao"] = "auto"
    """Who quantizes with --precision int8 or int4; auto: packhorse's own int8 for encoders on a CPU, else bitsandbytes
    or, where that is not installed, torchao."""
    quantization_options: dict[str, Any] = {}
    """Settings of BitsAndBytesConfig, or of torchao's config (and its `type`), by their names."""
    device_map: str | None = None
    """auto, balanced, sequential, or a JSON file that says which module lies on which device."""
    max_memory: str | None = None
    """Of each device for --device-map, as in 0=16GB,1=16GB,cpu=60GB."""
    offload_folder: str | None = None
    """Where layers lie that fit no device's memory; default: a temporary folder."""
    tensor_parallel: bool = False
    """Cut each layer over all of --devices, for a model that no single GPU holds: torch by transformers' tp_plan of the
    model, vLLM by its own."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        check_together(self.device_map, self.max_memory, self.offload_folder, self.tensor_parallel)
        return self
