"""A model's folder: a local one, or a snapshot from the hub."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from packhorse.disk import sha256_of
from packhorse.errors import ModelError, UsageError

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Weights in safetensors alone, and the small files around them.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
HUB_IGNORE = ["onnx/*", "openvino/*", "*.msgpack", "*.h5", "*.bin"]


class Found(NamedTuple):
    folder: Path
    name: str  # as the user wrote it
    commit: str | None  # of a hub model


def find_model(name: str, revision: str | None) -> Found:
    """The folder of a model. Raises UsageError where the name can be neither, ModelError where the hub has none."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
            raise UsageError(f"model {name}: the folder has no config.json, so it is no model folder")
        if revision:
            raise UsageError(f"--revision {revision}: {name} is a folder; revisions belong to hub models")
        return Found(folder.resolve(), name, None)
    if not HUB_ID.fullmatch(name) or name.startswith((".", "/")) or folder.exists():
        raise UsageError(f"model {name}: there is no such folder, and it is no hub id (ORGANISATION/NAME)")
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str | None) -> Found:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=HUB_PATTERNS, ignore_patterns=HUB_IGNORE)
        )
    except HFValidationError as error:
        raise UsageError(f"model {name}: there is no such folder, and it is no hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model {name}: there is no such folder, and the hub gave no model of that name: {first_line}"
        ) from error
    return Found(folder, name, folder.name)


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a model folder, by relative path; hidden files (a hub's bookkeeping) left out."""
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and not any(x.startswith(".") for x in p.relative_to(folder).parts)
    )
    with ThreadPoolExecutor() as pool:
        return dict(zip((str(p.relative_to(folder)) for p in files), pool.map(sha256_of, files), strict=True))
