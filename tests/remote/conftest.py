"""A local S3 server, and a bucket of its own for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.remote.server import LocalS3

SECRET = "hush-hush"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}  # fmt: skip


@pytest.fixture(scope="session")
def _server() -> Iterator[LocalS3]:
    for package in ("moto", "flask", "flask_cors", "s3fs", "boto3"):
        pytest.importorskip(package, reason="needs the packages moto[s3], flask, flask-cors, s3fs and boto3")
    server = LocalS3()
    yield server
    server.stop()


@pytest.fixture
def server(_server: LocalS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalS3]:
    """Every client of this process and of its children is sent there by the environment."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # what killed children leave
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (SETTINGS | {"AWS_ENDPOINT_URL": _server.url}).items():
        monkeypatch.setenv(name, value)
    _server.look_freely()
    yield _server
    _server.look_freely()


@pytest.fixture
def bucket(server: LocalS3) -> Bucket:
    return Bucket(f"bucket-{uuid4().hex[:12]}")


class Bucket:
    """What is there, seen with boto3: without any of our own ways."""

    def __init__(self, name: str) -> None:
        import boto3

        self.name, self.client = name, boto3.client("s3")
        self.client.create_bucket(Bucket=name)

    def __str__(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, data: bytes) -> str:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)
        return f"{self}/{key}"

    def get(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return data

    def keys(self, below: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=below)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def objects(self, below: str) -> dict[str, bytes]:
        """By what comes after `below`, without the report, which tells times."""
        return {k.removeprefix(below): self.get(k) for k in self.keys(below) if "/report." not in k}

    def uploads(self) -> list[Any]:
        """Uploads in parts that were begun and neither completed nor given up."""
        found: list[Any] = self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        return found
