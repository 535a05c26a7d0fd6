"""Values from flags and keywords to a config, or an error in words."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from packhorse.config.engine import EngineConfig
from packhorse.errors import UsageError, did_you_mean


def validated(config_type: type[EngineConfig], values: dict[str, Any]) -> Any:
    """The config, or a UsageError that names the flag, what was seen and what is legal."""
    try:
        return config_type(**values)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(config_type, item) for item in error.errors())) from None


def _explain(config_type: type[EngineConfig], item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    flag = "--" + name.replace("_", "-")
    if item["type"] == "extra_forbidden":
        return f"unknown setting {name!r}{did_you_mean(name, config_type.model_fields)}"
    if item["type"] == "missing":
        return f"setting {name!r} is needed"
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    return f"{flag} {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
