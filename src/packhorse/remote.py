"""Addresses of other machines: s3://bucket/key, gs://, hf://, https://, memory://. Their file systems, and their errors
in words that say what to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from packhorse.errors import InputError, PackhorseError, UsageError

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp",
            "https": "aiohttp", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "oss": "ossfs", "sftp": "paramiko",
            "ssh": "paramiko", "smb": "smbprotocol", "webhdfs": "requests"}  # fmt: skip
IN_PYARROW = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # protocols that pyarrow speaks by itself
LOCAL = ("file", "local")
WEB = ("http", "https")  # what follows a ? is no part of a name there
ROOTS = ("botocore.exceptions.BotoCoreError", "aiohttp.ClientError", "google.auth.exceptions.GoogleAuthError",
         "gcsfs.retry.HttpError", "azure.core.exceptions.AzureError", "httpx.HTTPError", "paramiko.SSHException",
         "requests.RequestException", "pyarrow.ArrowException")  # fmt: skip
GOES_ON = ". What was committed stays; the same command, without --overwrite, goes on from there"
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")


def is_remote(address: str) -> bool:
    """Whether it names its protocol: s3://bucket/key."""
    return "://" in address


def protocol_of(address: str) -> str:
    return address.partition("://")[0].lower()


def filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it. Nothing is remembered of what it lists.

    Raises UsageError that names the package to install, that no package is known for the protocol, or what is wrong
    with the address.
    """
    import fsspec

    protocol = protocol_of(address)
    _check_form(address)
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise UsageError(
            f"{address}: {protocol}:// is no protocol known here; legal are {', '.join(sorted(PACKAGES))}"
        ) from None
    except ImportError:
        if protocol not in IN_PYARROW:
            raise UsageError(_missing(address)) from None
        return _in_pyarrow(address)
    whole = protocol + address[len(protocol) :]  # S3:// too; not url_to_fs, which takes a :: in a key for a chain
    with explained(address, "cannot be reached"):
        fs = kind(**kind._get_kwargs_from_urls(whole), use_listings_cache=False)
    return fs, str(kind._strip_protocol(whole))


def _check_form(address: str) -> None:
    """Raises UsageError for an address that cannot be meant, without the secrets in it."""
    protocol, rest = protocol_of(address), address.partition("://")[2]
    if protocol in LOCAL:  # two names for one file: an input would not be told apart from an output
        raise UsageError(f"{address}: what lies on this machine is named by its path alone: {rest}")
    bucket = rest.partition("/")[0]
    if protocol in IN_PYARROW and not bucket:
        raise UsageError(f"{address}: names no bucket; write {protocol}://BUCKET/...")
    if protocol in IN_PYARROW and not bucket.startswith("arn:") and set("@:") & set(bucket):
        raise UsageError(
            f"{protocol}://: a key or a password in the address is not read from there; set the credentials of the "
            f"store in the environment, as for its own command line, and write {protocol}://BUCKET/..."
        )


def _missing(address: str) -> str:
    protocol = protocol_of(address)
    package = PACKAGES.get(protocol)
    how = f"pip install {package}" if package else "install the package that fsspec names for it"
    return f"{address}: for {protocol}:// a package is missing: {how}"


def _in_pyarrow(address: str) -> tuple[Any, str]:
    """pyarrow's own file system for a protocol whose package is not installed."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs

    bucket, _, key = address.partition("://")[2].partition("/")
    with explained(address, "cannot be reached"):
        inner, path = fs.FileSystem.from_uri(f"{IN_PYARROW[protocol_of(address)]}://{bucket}")
    return ArrowFSWrapper(inner), f"{path}/{key}".rstrip("/")


def is_in_pyarrow(fs: Any) -> bool:
    return type(fs).__name__ == "ArrowFSWrapper"


def notes_on(address: str) -> list[str]:
    """What a user should know of how an address is reached."""
    if not is_remote(address) or not is_in_pyarrow(filesystem(address)[0]):
        return []
    package = PACKAGES[protocol_of(address)]
    return [f"{protocol_of(address)}:// through pyarrow's own client, which tells no etags: pip install {package}"]


def canonical(address: str) -> str:
    """The address as its file system writes it, without a slash at its end."""
    fs, path = filesystem(address)
    return str(fs.unstrip_protocol(path)).rstrip("/")


@contextmanager
def explained(address: str, what: str, kind: type[PackhorseError] = InputError, then: str = "") -> Iterator[None]:
    """What a file system raises comes out as `kind`, with the address and what to do. The cause is not chained: it can
    hold secrets."""
    try:
        yield
    except PackhorseError:
        raise
    except network_errors() as error:
        raise kind(f"{address}: {what}: {_words(error)}{then}") from None


def network_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What the file systems that are loaded raise where a server, a name or a right is missing."""
    found: list[type[Exception]] = [OSError, *others]
    for root in ROOTS:
        module, _, name = root.rpartition(".")
        if module in sys.modules and hasattr(sys.modules[module], name):
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def answer_code(error: BaseException) -> str:
    """The code that S3 answered with, which s3fs keeps in the error's cause; else nothing."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _words(error: BaseException) -> str:
    name, said = type(error).__name__, str(error)
    if name in NO_CREDENTIALS:
        return f"{said}; set the credentials of the store in the environment, as for its own command line"
    if isinstance(error, PermissionError):
        return f"no permission ({said or name}); check the credentials in the environment and what they allow"
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket, folder or file ({said or name})"
    if isinstance(error, ConnectionError) or "connect" in said.lower():
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        at = f" and AWS_ENDPOINT_URL={endpoint}" if endpoint else ""
        return f"no connection ({said or name}); check the network{at}"
    return f"{name}: {said}" if said else name
