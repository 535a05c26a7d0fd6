"""Addresses can carry secrets, and messages, reports and manifests are shown around: what is secret is cut out."""

from __future__ import annotations

import re

USER = re.compile(r"(?<=://)[^/@\s'\"]*@")  # s3://KEY:SECRET@bucket
QUERY = re.compile(r"(\w+://[^\s'\"?]*)\?[^\s'\"]*=[^\s'\"]*")  # https://host/file?X-Amz-Signature=...; no glob has a =


def redacted(text: str) -> str:
    """The text with *** in place of user names, passwords and query strings of the addresses in it."""
    return QUERY.sub(r"\1?***", USER.sub("***@", text))
