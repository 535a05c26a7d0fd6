"""Repositories of the hub through huggingface_hub: its cache, its token, its offline mode."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from packhorse.errors import HostileModelError, ModelError, UsageError, first_line
from packhorse.models.hub_files import GRAPH_FOLDERS, SMALL


class Listing(NamedTuple):
    """A repository's files at a commit. is_cached: as they lie in the cache, since the hub could not be asked."""

    commit: str
    names: tuple[str, ...]
    is_cached: bool


class Repository(NamedTuple):
    """role: what it is for, in errors: `model` or `--adapter`."""

    role: str
    name: str
    revision: str | None

    def __str__(self) -> str:
        return f"{self.role} {self.name}"


def listing(repository: Repository) -> Listing:
    """At the commit that the revision is now. Without a network, or with HF_HUB_OFFLINE, what the cache has of it.

    Raises UsageError for a name or revision that cannot be meant, HostileModelError where a file leads outside,
    ModelError that says what to do for all else.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    with _explained(repository):
        try:
            info = HfApi().repo_info(repository.name, revision=repository.revision)
        except OfflineModeIsEnabled:
            return _cached(repository)
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            return _cached(repository, error)
        except HTTPError as error:
            return _cached(repository, error)
    names = tuple(str(s.rfilename) for s in info.siblings or ())
    outside = [n for n in names if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]
    if outside:
        raise HostileModelError(f"{repository}: lists the file {outside[0]!r}, which leads outside its folder")
    return Listing(str(info.sha), names, is_cached=False)


def download(repository: Repository, found: Listing, names: Sequence[str]) -> Path:
    """The snapshot's folder with these files in it; what is there already is not fetched again, a file that broke off
    goes on where it stopped as far as the hub's client does so. Raises as listing() does."""
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in names]
    with _explained(repository):
        folder = Path(
            snapshot_download(
                repository.name,
                revision=repository.revision,
                allow_patterns=patterns,
                local_files_only=found.is_cached,
            )
        )
    if folder.name != found.commit:
        raise ModelError(f"{repository}: its revision moved while it was downloaded; start again")
    _check_whole(repository, folder, names)
    return folder


def _cached(repository: Repository, error: Exception | None = None) -> Listing:
    """Raises LocalEntryNotFoundError where the cache has not even the small files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = snapshot_download(
            repository.name, revision=repository.revision, local_files_only=True,
            allow_patterns=list(SMALL), ignore_patterns=list(GRAPH_FOLDERS),
        )  # fmt: skip
    except LocalEntryNotFoundError as missing:
        why = f"the hub cannot be reached ({first_line(error)})" if error else "HF_HUB_OFFLINE is set"
        raise ModelError(
            f"{repository}: there is no such folder, {why}, and the cache has no whole copy"
            f"{_at(repository.revision)}. Fetch it once with a network: {fetch_command(repository)}"
        ) from missing
    folder = Path(path)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return Listing(folder.name, tuple(names), is_cached=True)


def _check_whole(repository: Repository, folder: Path, names: Sequence[str]) -> None:
    """Every shard that an index names is among the files: of a cached snapshot some may be missing."""
    for name in (n for n in names if n.endswith(".safetensors.index.json")):
        try:
            shards = set(map(str, json.loads((folder / name).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{folder / name}: cannot be read as an index of weights: {error}") from error
        beside = str(Path(name).parent)
        missing = sorted(s for s in shards if not (folder / beside / s).is_file())
        has_whole = (folder / beside / "model.safetensors").is_file()
        if missing and not has_whole:
            raise ModelError(
                f"{repository}: {missing[0]} and {len(missing) - 1} more of its {len(shards)} weight files are "
                f"missing; fetch them: {fetch_command(repository)}"
            )


@contextmanager
def _explained(repository: Repository) -> Iterator[None]:
    """The client's errors as ours, each with what to do."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    try:
        yield
    except HFValidationError as error:
        raise UsageError(f"{repository}: there is no such folder, and it is no hub id: {error}") from error
    except HfHubHTTPError as error:
        raise _refused(repository, error) from error
    except HTTPError as error:
        raise ModelError(
            f"{repository}: the connection to the hub broke: {first_line(error)}. The same command goes on; "
            "files that are whole are not fetched again"
        ) from error
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{repository}: what answers at {HfApi().endpoint} is no hub, it sends no JSON (a page to log in to the "
            "network?); look at HF_ENDPOINT and the network"
        ) from error
    except OSError as error:
        raise ModelError(
            f"{repository}: cannot be downloaded: {first_line(error)}. Is the disk full? The cache lies under HF_HOME"
        ) from error


def _refused(repository: Repository, error: Exception) -> ModelError | UsageError:
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code  # type: ignore[attr-defined]
    token = "your token does not open it" if get_token() else "no token was sent: set HF_TOKEN, or `hf auth login`"
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{repository}: gated: its authors let in who agreed to their terms, and the hub says {status}; {token}. "
            f"Agree on the page of {repository.name}, then come with a token of that account"
        )
    if isinstance(error, RevisionNotFoundError):
        return UsageError(
            f"--revision {repository.revision}: {repository.name} has no such branch, tag or commit; leave it out for "
            "the newest"
        )
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return ModelError(
            f"{repository}: there is no such folder, and the hub has no such model, or it is private ({status}). "
            f"Look at the spelling (ORGANISATION/NAME); for a private one, {token}"
        )
    if status in (401, 403):
        return ModelError(f"{repository}: the hub refuses it ({status}); {token}")
    return ModelError(f"{repository}: the hub answered {status}: {first_line(error)}. Try again later")


def fetch_command(repository: Repository) -> str:
    at = f" --revision {repository.revision}" if repository.revision else ""
    return f"hf download {repository.name}{at}"


def _at(revision: str | None) -> str:
    return f" of revision {revision}" if revision else ""
