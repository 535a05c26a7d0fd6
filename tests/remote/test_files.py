"""Files by address: what a local S3 server, a local web server and a store in memory tell of them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest

import packhorse
from packhorse import files
from packhorse.errors import InputError, PackhorseError, UsageError
from packhorse.readers import open_input
from packhorse.redaction import redacted
from tests.remote.conftest import SECRET, Bucket
from tests.remote.jobs import jsonl_bytes, parquet_bytes
from tests.remote.server import LocalS3, RefusedRequestError

BYTES = bytes(range(256)) * 80_000  # 20 MB: more than one block


@pytest.fixture(params=["s3", "memory", "local"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with in/b.bin, in/deep/a.bin and in/c.txt."""
    data = {"in/b.bin": BYTES, "in/deep/a.bin": b"a", "in/c.txt": b"see"}
    if request.param == "s3":
        bucket = request.getfixturevalue("bucket")
        for key, content in data.items():
            bucket.put(key, content)
        return str(bucket)
    if request.param == "memory":
        fsspec = pytest.importorskip("fsspec")
        address = f"memory:///{uuid4().hex}"
        for key, content in data.items():
            fsspec.filesystem("memory").pipe_file(f"{address}/{key}", content)
        return address
    for key, content in data.items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(content)
    return str(tmp_path)


def test_files_and_folders_are_found(root: str) -> None:
    assert files.is_file(f"{root}/in/b.bin") and not files.is_folder(f"{root}/in/b.bin")
    assert files.is_folder(f"{root}/in") and not files.is_file(f"{root}/in")
    assert not files.is_file(f"{root}/none") and not files.is_folder(f"{root}/none")
    assert files.all_below(f"{root}/in") == [f"{root}/in/b.bin", f"{root}/in/c.txt", f"{root}/in/deep/a.bin"]
    assert files.matching(f"{root}/in/*.bin") == [f"{root}/in/b.bin"]
    assert files.matching(f"{root}/in/**/*.bin") == [f"{root}/in/b.bin", f"{root}/in/deep/a.bin"]
    assert files.matching(f"{root}/none*") == []
    assert files.full(f"{root}/in/") == f"{root}/in"
    assert files.size_of(f"{root}/in/b.bin") == len(BYTES)
    assert files.name_of(f"{root}/in/b.bin") == "b.bin"


@pytest.mark.parametrize("is_sequential", [True, False])
def test_bytes_are_those_that_were_put(root: str, is_sequential: bool) -> None:
    with files.open_file(f"{root}/in/b.bin", is_sequential) as file:
        assert file.read(3) == BYTES[:3]
        assert file.seek(19_000_001) == 19_000_001
        assert file.read(1_000) == BYTES[19_000_001:19_001_001]
        assert (file.tell(), file.seek(5)) == (19_001_001, 5)
        assert file.read() == BYTES[5:]
        assert file.read(1) == b""


def test_a_fingerprint_changes_with_the_file(root: str, request: pytest.FixtureRequest) -> None:
    address = f"{root}/in/c.txt"
    before = files.fingerprint(address)
    assert files.fingerprint(address) == before and (before["path"], before["size"]) == (address, 3)
    if "://" in root:
        import fsspec

        fsspec.open(address, "wb").open().close()
    else:
        Path(address).write_bytes(b"")
    assert files.fingerprint(address) != before


def test_what_is_not_there_is_named(root: str) -> None:
    for ask in (files.size_of, files.open_file, files.fingerprint):
        with pytest.raises(InputError, match="in/none"):
            ask(f"{root}/in/none")  # type: ignore[operator]


def test_places_are_told_apart(root: str) -> None:
    assert files.lies_in(f"{root}/in/deep/a.bin", f"{root}/in") and files.lies_in(f"{root}/in/", f"{root}/in")
    assert not files.lies_in(f"{root}/in/deep", f"{root}/in/de")
    assert not files.lies_in(f"{root}/in", f"{root}/in/deep")
    assert not files.lies_in(f"{root}/in", "/" if "://" in root else "memory://in")


def test_a_bucket_that_is_not_there_is_named(server: LocalS3) -> None:
    with pytest.raises(InputError, match=r"s3://no-such-bucket-1/rows\.jsonl: .*bucket does not exist"):
        open_input("s3://no-such-bucket-1/rows.jsonl")


def test_no_permission_says_what_to_check(bucket: Bucket, server: LocalS3) -> None:
    def refuse(request: dict[str, Any]) -> None:
        raise RefusedRequestError("403 Forbidden", "AccessDenied")

    server.before = refuse
    with pytest.raises(InputError, match=r"no permission.*credentials") as caught:
        open_input(f"{bucket}/rows.jsonl")
    assert SECRET not in str(caught.value)


def test_a_server_that_is_not_there_is_named(server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # the client's own five take 10 s
    source = "import sys; from packhorse.readers import open_input; open_input(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", source, "s3://b-k-t/x.jsonl"], capture_output=True, check=False)
    assert b"InputError: s3://b-k-t/x.jsonl: " in done.stderr
    assert b"no connection" in done.stderr and b"AWS_ENDPOINT_URL=http://127.0.0.1:9" in done.stderr


@pytest.mark.parametrize(
    ("address", "package", "command"),
    [
        ("gs://b/x.jsonl", "gcsfs", None),  # pyarrow speaks it
        ("hf://datasets/a/b/x.jsonl", "huggingface_hub", "pip install huggingface_hub"),
        ("https://example.org/x.jsonl", "aiohttp", "pip install aiohttp"),
        ("abfs://a/x.jsonl", "adlfs", "pip install adlfs"),
    ],
)
def test_a_missing_package_is_named_with_its_command(address: str, package: str, command: str | None) -> None:
    source = f"import sys; sys.modules[{package!r}] = None; from packhorse.remote import filesystem as f; "
    asked = f"{source}print(type(f({address!r})[0]).__name__)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    if command is None:
        assert done.stdout.strip() == "ArrowFSWrapper", done.stderr
    else:
        assert f"UsageError: {address}: " in done.stderr and command in done.stderr


def test_an_unknown_protocol_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"odd:// is no protocol known here; legal are .*s3"):
        open_input("odd://x/rows.jsonl")


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("file:///data/rows.jsonl", "named by its path alone: /data/rows.jsonl"),
        ("s3://", "names no bucket"),
        (f"s3://KEY:{SECRET}@bucket/rows.jsonl", "credentials of the store in the environment"),
        (f"s3://KEY:a/{SECRET}@bucket/rows.jsonl", "credentials of the store in the environment"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(tmp_path: Path, address: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl_bytes(1))
    for source, output in ((address, f"{tmp_path}/out/"), (f"{tmp_path}/rows.jsonl", address)):
        with pytest.raises(UsageError, match=said) as caught:
            packhorse.run("no-model", source, output)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("key", ["co::lon/a.jsonl", "q?/a?x=1.jsonl", "p%20/a#1.jsonl", "day=1/ü [2]*.jsonl"])
def test_keys_with_signs_that_mean_something_elsewhere(bucket: Bucket, key: str) -> None:
    address = bucket.put(f"in/{key}", jsonl_bytes(3))
    bucket.put("in/b.jsonl", jsonl_bytes(3))
    for asked, count in ((address, 1), (address.rpartition("/")[0], 1), (f"{bucket}/in", 2)):
        assert len(open_input(asked).files) == count
    assert open_input(f"S3{address[2:]}").files == [address]


def test_columns_that_are_not_asked_for_are_not_fetched(bucket: Bucket, server: LocalS3) -> None:
    heavy = [Random(i).randbytes(3_000) for i in range(2_000)]
    address = bucket.put("in/rows.parquet", parquet_bytes(2_000, heavy=heavy))
    size, fetched = len(bucket.get("in/rows.parquet")), 0

    def count(request: dict[str, Any]) -> None:
        nonlocal fetched
        if request["REQUEST_METHOD"] == "GET" and "HTTP_RANGE" in request:
            start, _, end = request["HTTP_RANGE"].removeprefix("bytes=").partition("-")
            fetched += int(end) - int(start) + 1

    server.before = count
    reader = open_input(address)
    chunks = list(reader.read(next(iter(reader.spread(1))), ["id"], ["text"]))
    assert sum(chunk.table.num_rows for chunk in chunks) == 2_000
    assert 0 < fetched < size / 10
    assert [r for c in chunks for r in c.table["id"].to_pylist()] == list(range(2_000))


class Ranges(SimpleHTTPRequestHandler):
    """A web server that gives parts of files, as most do; that of the standard library does not."""

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path.partition("?")[0])).read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        piece = data[int(first) : int(last or len(data)) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self.wfile.write(piece)

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        super().end_headers()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp", reason="needs the package aiohttp")
    handler = partial(Ranges, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_come_from_a_web_server(web: str, tmp_path: Path, kind: str) -> None:
    (tmp_path / f"rows.{kind}").write_bytes(parquet_bytes(500) if kind == "parquet" else jsonl_bytes(500))
    signed = f"{web}/rows.{kind}?token={SECRET}"
    reader = open_input(signed)
    chunks = list(reader.read(next(iter(reader.spread(1))), ["id"], ["text"]))
    assert [r for c in chunks for r in c.table["id"].to_pylist()] == list(range(500))
    assert SECRET not in str(reader.fingerprint())
    with pytest.raises(PackhorseError) as caught:
        open_input(f"{web}/none.{kind}?token={SECRET}")
    assert SECRET not in str(caught.value)


def test_what_a_web_server_refuses_is_not_called_missing(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handler: Ranges) -> None:
        handler.send_error(403, "Request has expired")

    for verb in ("do_GET", "do_HEAD"):
        monkeypatch.setattr(Ranges, verb, refuse)
    with pytest.raises(InputError, match=r"rows.jsonl\?\*\*\* cannot be read: .*403"):
        open_input(f"{web}/rows.jsonl?token={SECRET}")
    with pytest.raises(InputError, match="no connection"):
        open_input("http://127.0.0.1:9/rows.jsonl")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/x.parquet?X-Amz-Signature=abc&y=1: no", "https://h/x.parquet?*** no"),
        ("in s3://KEY:SECRET@bucket/x.jsonl, s3://b/part-?.jsonl", "in s3://***@bucket/x.jsonl, s3://b/part-?.jsonl"),
        ("ssh://me@host/data/a@b.csv", "ssh://***@host/data/a@b.csv"),
        ("/data/a=b/x?.parquet me@home s3://b/year=2026/x", "/data/a=b/x?.parquet me@home s3://b/year=2026/x"),
        ("'https://h/f?a=b' 'https://h/g?c=d'", "'https://h/f?***' 'https://h/g?***'"),
    ],
)
def test_secrets_are_cut_out(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert str(InputError(text)) == shown
