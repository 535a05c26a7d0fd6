"""The demo's collecting, on a small tree of sources."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest

DEMO = Path(__file__).resolve().parents[2] / "demo"

NESTED = '''"""Module."""
import sys

class Outer:
    """Outer."""

    class Inner:
        """Inner."""

        async def fetch(self):
            """Fetch."""

    def silent(self):
        pass

if sys.platform == "win32":
    def here():
        """On Windows."""
else:
    def here():
        """Elsewhere."""

try:
    import fast
except ImportError:
    async def slow():
        """Slow."""
        def hidden():
            """Hidden."""

def blank():
    """   """
'''


def by_path(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DEMO / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


collect = by_path("collect")


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "collect", collect)
    return by_path("demo")


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def rows(count: int, text: str = "two words") -> list:
    return [collect.Docstring("p", f"p.m{row}", text) for row in range(count)]


def test_names_and_order_of_nested_definitions() -> None:
    assert list(collect.docstrings(NESTED.encode(), "m")) == [
        ("m", "Module."),
        ("m.Outer", "Outer."),
        ("m.Outer.Inner", "Inner."),
        ("m.Outer.Inner.fetch", "Fetch."),
        ("m.here", "On Windows."),
        ("m.here", "Elsewhere."),
        ("m.slow", "Slow."),
    ]


def test_rows_are_sorted_by_package_path_and_line(tmp_path: Path) -> None:
    module = '"""Text."""\ndef f():\n    """F."""\n'
    std = write(tmp_path / "std", {"zip.py": module, "a/__init__.py": module, "a/b.py": module})
    pkg = write(tmp_path / "pkg", {"__init__.py": module, "z.py": module})
    found = collect.collect({"stdlib": std, "pkg": pkg})
    assert [row.name for row in found.rows] == (
        ["pkg", "pkg.f", "pkg.z", "pkg.z.f", "a", "a.f", "a.b", "a.b.f", "zip", "zip.f"]
    )
    assert Counter(row.package for row in found.rows) == {"pkg": 4, "stdlib": 6}


def test_folders_that_are_left_out(tmp_path: Path) -> None:
    left_out = [
        "test",
        "tests",
        "a/tests",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "site-packages/numpy",
        "__pycache__",
    ]
    root = write(tmp_path, {f"{folder}/x.py": '"""No."""' for folder in left_out} | {"a/x.py": '"""Yes."""'})
    write(root, {"a/x.pyi": '"""No."""', "a/x.txt": '"""No."""', "a/x-y.py": '"""No."""'})
    assert [row.text for row in collect.collect({"stdlib": root}).rows] == ["Yes."]


def test_a_linked_folder_is_not_followed(tmp_path: Path) -> None:
    root = write(tmp_path, {"a/x.py": '"""Yes."""'})
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    assert len(collect.collect({"stdlib": root}).rows) == 1


@pytest.mark.parametrize("broken", ["def f(:\n", b"\xff\xfe\x00", b'"""\x00"""', "# coding: no-such\n"])
def test_a_file_that_cannot_be_parsed_is_counted(tmp_path: Path, broken: str | bytes) -> None:
    root = write(tmp_path, {"a.py": '"""A."""', "b.py": broken, "c.py": '"""C."""'})
    found = collect.collect({"pkg": root})
    assert [row.text for row in found.rows] == ["A.", "C."]
    assert found.unparsed == [root / "b.py"]


def test_odd_text_becomes_utf8(tmp_path: Path) -> None:
    latin = "# coding: latin-1\n'''caf\xe9'''".encode("latin-1")
    root = write(tmp_path, {"a.py": r'"""lone \ud800 surrogate"""', "b.py": latin})
    found = collect.collect({"pkg": root})
    assert [row.text for row in found.rows] == ["lone ? surrogate", "caf\xe9"]
    assert collect.as_table(found.rows)["text"].to_pylist() == ["lone ? surrogate", "caf\xe9"]


def test_duplicates_are_kept(tmp_path: Path) -> None:
    root = write(tmp_path, {f"m{number}.py": '"""Same."""' for number in range(3)})
    found = collect.collect({"pkg": root})
    kept = collect.within_caps(found.rows, 10, 100, words)
    assert [row.text for row in kept] == ["Same."] * 3


def test_under_both_caps_all_rows_stay_in_order() -> None:
    every = rows(10)
    assert collect.within_caps(every, 10, 20, words) == every


@pytest.mark.parametrize(("max_rows", "max_tokens", "expected"), [(7, 1000, 7), (100, 31, 15), (100, 1, 0), (0, 9, 0)])
def test_caps(max_rows: int, max_tokens: int, expected: int) -> None:
    every = rows(100)
    kept = collect.within_caps(every, max_rows, max_tokens, words)
    assert len(kept) == expected
    assert kept == [row for row in every if row in kept]
    assert kept == collect.within_caps(every, max_rows, max_tokens, words)


def test_the_subset_is_spread_evenly_and_grows_with_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "BLOCK", 64)
    every = rows(1000)
    few, more = (collect.within_caps(every, 1000, tokens, words) for tokens in (400, 800))
    assert len(few) == 200 and len(more) == 400
    assert set(few) < set(more)
    in_tenths = Counter(int(row.name.removeprefix("p.m")) // 100 for row in more)
    assert len(in_tenths) == 10 and min(in_tenths.values()) >= 25


def test_the_subset_does_not_change_where_other_packages_come_and_go() -> None:
    other = [collect.Docstring("q", f"q.m{row}", "two words") for row in range(100)]
    alone = collect.within_caps(rows(100), 100, 1000, words)
    both = collect.within_caps([*rows(100), *other], 50, 1000, words)
    assert {row for row in both if row.package == "p"} <= set(alone)


def test_the_file_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "output" / "docstrings.parquet"
    assert collect.write_once(path, lambda: collect.as_table(rows(3)))
    assert not collect.write_once(path, lambda: pytest.fail("built again"))
    table = pq.read_table(path)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("id", "int64"),
        ("package", "string"),
        ("name", "string"),
        ("text", "string"),
    ]
    assert table["id"].to_pylist() == [0, 1, 2]
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(_table: object, path: Path) -> None:
        path.write_bytes(b"PAR1")
        raise OSError("disk full")

    monkeypatch.setattr(collect.pq, "write_table", half)
    with pytest.raises(OSError, match="disk full"):
        collect.write_once(tmp_path / "docstrings.parquet", lambda: collect.as_table([]))
    assert not list(tmp_path.iterdir())


def test_nearest_shows_a_repeated_text_once(demo: ModuleType) -> None:
    similarities = np.array([0.1, 0.9, 0.9, 0.5, 0.7], np.float32)
    assert list(demo.nearest(similarities, ["a", "b", "b", "c", "d"], 3)) == [1, 4, 3]
    assert list(demo.nearest(similarities, ["a"] * 5, 3)) == [1]


def test_a_package_that_is_not_installed_is_named(demo: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no_such_package is not installed"):
        demo.package_folder("no_such_package")


@pytest.mark.parametrize(("ended", "code"), [(0, 0), (3, 3), (-9, 137)])
def test_the_exit_code_of_the_command_is_the_demos(
    demo: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    ended: int,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Ended:
        returncode = ended

    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: Ended())
    assert demo.embed_docstrings(Path("/models/some model")) == code
    inputs = "'/models/some model' demo/output/docstrings.parquet"
    assert f"$ packhorse run {inputs} -o demo/output/vectors --text-column text\n" in capsys.readouterr().out
