"""A model's folder: a local one, or a snapshot from the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from packhorse.errors import ChangedError, UsageError
from packhorse.models.hub import Repository, download, fetch_command, listing
from packhorse.models.hub_files import Source, Wanted, select
from packhorse.outputs.disk import sha256_of

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
ADAPTER_CONFIG = "adapter_config.json"


class Found(NamedTuple):
    folder: Path
    name: str  # as the user wrote it
    commit: str | None  # of a hub model
    files: tuple[str, ...] | None = None  # of a hub model, by relative path: what else lies in the cache is not of it
    source: Source = "folder"  # what of a hub model is loaded; folder: what lies there decides
    notes: tuple[str, ...] = ()


def find_model(name: str, revision: str | None, wanted: Wanted | None = None) -> Found:
    """The folder of a model. Raises UsageError where the name can be neither, ModelError where the hub has none."""
    folder = Path(name)
    if folder.is_dir():
        _check_is_model(folder)
        if revision:
            raise UsageError(f"--revision {revision}: {name} is a folder; revisions belong to hub models")
        return Found(folder.resolve(), name, None)
    if not is_hub_id(name):
        raise UsageError(f"model {name}: there is no such folder, and it is no hub id (ORGANISATION/NAME)")
    repository = Repository("model", name, revision)
    here = listing(repository)
    cached = f", of which the cache may lack files: {fetch_command(repository)}" if here.is_cached else ""
    chosen = select(here.names, wanted or Wanted(), f"{repository} (commit {here.commit[:12]}{cached})")
    snapshot = download(repository, here, chosen.files)
    _check_is_model(snapshot, name)
    return Found(snapshot, name, here.commit, chosen.files, chosen.source, cache_note(repository, here.is_cached))


def is_hub_id(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not name.startswith(".") and not Path(name).exists()


def cache_note(repository: Repository, is_cached: bool) -> tuple[str, ...]:
    """For the plan: a run without the hub may not have the newest commit."""
    return (f"{repository}: from the cache, the hub was not asked",) if is_cached else ()


def _check_is_model(folder: Path, name: str = "") -> None:
    """Raises UsageError for a folder that is none, or that transformers would take for an adapter."""
    what = f"model {name or folder}"
    has_config = any((folder / file).is_file() for file in ("config.json", "modules.json"))
    if (folder / ADAPTER_CONFIG).is_file():
        raise UsageError(
            f"{what}: holds {ADAPTER_CONFIG}, so it is a PEFT adapter: give its base model as the model, and this with "
            f"--adapter{'. Where the adapter is merged already, delete that file' if has_config else ''}"
        )
    if not has_config:
        raise UsageError(f"{what}: the folder has no config.json, so it is no model folder")


def file_hashes(folder: Path, names: Sequence[str] | None = None) -> dict[str, str]:
    """sha256 by relative path: of these files, or of all but hidden ones (a hub's bookkeeping)."""
    every = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    shown = sorted(names if names is not None else (n for n in every if not _is_hidden(n)))
    with ThreadPoolExecutor() as pool:
        return dict(zip(shown, pool.map(lambda name: sha256_of(folder / name), shown), strict=True))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def check_same_commit(then: dict[str, Any], now: dict[str, Any], name: str, adapter: str | None) -> None:
    """Of identities in a manifest. Raises ChangedError where a hub repository moved, with how to go on."""
    pairs = [(f"model {name}", "--revision {}", then, now)]
    if adapter is not None:
        flag = f"--adapter {adapter.partition('@')[0]}@{{}}"
        pairs.append((f"--adapter {adapter}", flag, then.get("adapter") or {}, now.get("adapter") or {}))
    for what, flag, old, new in pairs:
        before, after = old.get("commit"), new.get("commit")
        if before and after and before != after:
            raise ChangedError(
                f"{what}: this output was begun with commit {before}, and the hub now has {after}. "
                f"{flag.format(before)} goes on with the first; --overwrite starts anew with the second"
            )
