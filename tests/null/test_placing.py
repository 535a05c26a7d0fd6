"""--device-map, --max-memory and --offload-folder: what they say, and what cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.errors import UsageError
from packhorse.placing import parse_device_map, parse_max_memory, parse_placement


def test_sizes_of_max_memory() -> None:
    assert parse_max_memory("0=16GB, 1=1.5GiB,cpu=60MB,disk=7") == {
        "0": 16 * 10**9, "1": 3 * 2**29, "cpu": 60 * 10**6, "disk": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("16GB", "'16GB' is not DEVICE=SIZE"),
        ("0=16GB,0=2GB", "0 stands there twice"),
        ("0=1GB,00=2GB", "0 stands there twice"),
        ("cuda:1=16GB", "'cuda:1' is no device; legal are a number for a GPU .*; say 1 for cuda:1"),
        ("cpuu=16GB", "did you mean 'cpu'"),
        ("0=lots", "'lots' is no size"),
        ("0=-1GB", "'-1GB' is no size"),
        ("0=16Gb", "could mean bits; write 16GB"),
        ("0=", "'' is no size"),
    ],
)
def test_a_max_memory_that_cannot_be_meant(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"--max-memory .*{words}"):
        parse_max_memory(text)


def test_device_maps(tmp_path: Path) -> None:
    assert parse_device_map("balanced_low_0") == "balanced_low_0"
    path = tmp_path / "map.json"
    path.write_text('{"model.embed_tokens": 0, "model.layers": "cuda:1", "": "disk"}')
    assert parse_device_map(str(path)) == {"model.embed_tokens": "0", "model.layers": "1", "": "disk"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "has to be an object"),
        ("{", "cannot be read as JSON"),
        ('{"lm_head": "gpu"}', "'lm_head' is put on \"gpu\"; legal are"),
        ('{"lm_head": true}', "'lm_head' is put on true"),
        ('{"lm_head": -1}', "'lm_head' is put on -1"),
    ],
)
def test_a_device_map_that_cannot_be_meant(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(UsageError, match=words):
        parse_device_map(str(tmp_path / "map.json"))
    with pytest.raises(UsageError, match=r"--device-map atuo: legal are .*; did you mean 'auto'"):
        parse_device_map("atuo")


def test_flags_that_mean_nothing_together(tmp_path: Path) -> None:
    assert not parse_placement(None, None, None).is_split
    assert parse_placement("auto", "cpu=1GB", "off").max_memory == {"cpu": 10**9}
    (tmp_path / "map.json").write_text('{"": "cpu"}')
    for flags, words in (
        (("auto", None, None, True), "--tensor-parallel with --device-map auto"),
        ((None, "cpu=1GB", None), "--max-memory cpu=1GB: says where layers may lie.*add --device-map auto"),
        ((None, None, "off"), "--offload-folder off: says where"),
        ((str(tmp_path / "map.json"), "cpu=1GB", None), "the file says itself where every module lies"),
    ):
        with pytest.raises(UsageError, match=words):
            parse_placement(*flags)
