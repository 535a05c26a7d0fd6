"""`packhorse verify`: an output against its checksums."""

from __future__ import annotations

from typing import Annotated

import typer


def verify(
    output: Annotated[str, typer.Argument(help="Output of an earlier run: its folder or file.")],
) -> None:
    """Re-checks every byte of an output against the checksums written when it was committed."""
    from packhorse import api

    found = api.verify(output)
    state = "finished" if found.is_finished else "not finished yet"
    typer.echo(
        f"{found.output}: good. {found.rows:,} rows in {found.shards} shards, {found.num_bytes:,} bytes; {state}"
    )
