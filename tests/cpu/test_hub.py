"""Hub ids through the real huggingface_hub, in a process of its own, against a server on loopback."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.cpu.command import Done, forked, parts, write_rows
from tests.fork_server import TORCH, TRANSFORMERS
from tests.hub_server import Hub, files_of, serving
from tests.models import save_null_model

NAME = "org/small"
TOKEN = "hf_aSecretThatNobodyMayRead"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as server:
        yield server


class Machine:
    """One user's machine: a cache of its own, rows, an output."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.rows = write_rows(folder / "rows.parquet", 40)
        self.output = folder / "out"

    def run(self, *arguments: Any, output: Path | None = None, **variables: str) -> Done:
        """`packhorse run NAME`, unless the arguments begin with another model."""
        names = arguments if arguments and not str(arguments[0]).startswith("-") else (NAME, *arguments)
        where = output or self.output
        arguments = ("run", names[0], self.rows, "-o", f"{where}/", *names[1:])
        preload = TRANSFORMERS if isinstance(names[0], Path) else TORCH  # a folder asks no hub
        return forked(*arguments, env=self.environment(**variables), preload=preload)

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        settings = {
            "HF_ENDPOINT": self.hub.endpoint, "HF_HOME": str(self.folder / "hf"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5", "COLUMNS": "300", "NO_COLOR": "1",
        }  # fmt: skip
        return kept | settings | variables

    def manifest(self, output: Path | None = None) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(((output or self.output) / "_packhorse/manifest.json").read_text())
        return content


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path)


def said(done: Done) -> str:
    return " ".join(done.stderr.split())


def ok(done: Done) -> None:
    assert done.returncode == 0, done.stderr


def test_a_model_by_id_gives_what_its_folder_gives_and_then_runs_offline(
    machine: Machine, hub: Hub, bert: Path
) -> None:
    files = files_of(bert) | {"README.md": b"x", "onnx/model.onnx": b"x" * 9_000, "pytorch_model.bin": b"x" * 9_000}
    commit = hub.model(NAME).push(files)
    ok(machine.run("--precision", "fp32"))
    ok(machine.run(bert, "--precision", "fp32", output=machine.folder / "local"))
    assert parts(machine.output) == parts(machine.folder / "local")
    assert pq.read_table(machine.output).num_rows == 40
    identity = machine.manifest()["model"]
    assert identity["commit"] == commit
    assert set(identity["files"]) == set(files_of(bert))
    assert not hub.gets("onnx/model.onnx") and not hub.gets("pytorch_model.bin") and not hub.gets("README.md")
    assert len(hub.gets("model.safetensors")) >= 1
    seen = len(hub.requests)
    again = machine.folder / "again"
    ok(machine.run("--precision", "fp32", output=again, HF_HUB_OFFLINE="1"))
    assert len(hub.requests) == seen
    assert machine.manifest(again)["model"] == identity
    assert parts(again) == parts(machine.output)


def test_a_run_begun_online_is_continued_from_the_cache_while_the_hub_is_away(machine: Machine, hub: Hub) -> None:
    null = save_null_model(machine.folder / "null")
    hub.model(NAME).push(files_of(null))
    ok(machine.run("--backend", "null"))
    done = machine.run("--backend", "null", HF_ENDPOINT="http://127.0.0.1:9")
    ok(done)
    again = machine.folder / "again"
    ok(machine.run("--backend", "null", output=again, HF_ENDPOINT="http://127.0.0.1:9"))
    assert any("the hub was not asked" in note for note in machine.manifest(again)["plan"]["notes"])
    hub.model(NAME).status = 503
    ok(machine.run("--backend", "null", output=machine.folder / "third"))


def test_a_revision_is_a_branch_a_tag_or_a_commit(machine: Machine, hub: Hub) -> None:
    repo = hub.model(NAME)
    old = repo.push(files_of(save_null_model(machine.folder / "two")), "v1")
    new = repo.push(files_of(save_null_model(machine.folder / "three", num_labels=3)))
    offered = repo.push(files_of(save_null_model(machine.folder / "four", num_labels=4)), "refs/pr/1")
    revisions = [("v1", old), (old, old), ("main", new), (new, new), ("refs/pr/1", offered)]
    for number, (revision, commit) in enumerate(revisions):
        output = machine.folder / str(number)
        ok(machine.run("--backend", "null", "--revision", revision, output=output))
        assert machine.manifest(output)["model"]["commit"] == commit
    done = machine.run("--backend", "null", "--revision", "nothing", output=machine.folder / "x")
    assert done.returncode == 2
    assert "--revision nothing" in said(done) and "no such branch, tag or commit" in said(done)
    done = machine.run("--backend", "null", "--revision", "other", output=machine.folder / "x", HF_HUB_OFFLINE="1")
    assert f"hf download {NAME} --revision other" in said(done)


def test_a_cache_that_holds_part_of_a_model_says_how_to_fetch_the_rest(machine: Machine, hub: Hub) -> None:
    hub.model(NAME).push(files_of(save_null_model(machine.folder / "null")) | {"model.safetensors": b"x" * 9_000})
    ok(machine.run("--backend", "null"))
    done = machine.run("--backend", "torch", output=machine.folder / "x", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "the cache may lack files" in said(done) and f"hf download {NAME}" in said(done)


class Portal(BaseHTTPRequestHandler):
    """What a network answers to everything before one has logged in to it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "8")
        self.end_headers()
        self.wfile.write(b"<log in>")

    def log_message(self, *args: Any) -> None: ...


def test_a_page_in_the_place_of_the_hub_is_told_as_such(machine: Machine) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        machine.hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        done = machine.run("--backend", "null")
        server.shutdown()
    assert done.returncode == 1
    assert f"{machine.hub.endpoint} is no hub" in said(done) and "HF_ENDPOINT" in said(done)


def test_where_the_branch_moved_a_resumed_run_is_refused_and_told_how_to_go_on(machine: Machine, hub: Hub) -> None:
    repo = hub.model(NAME)
    old = repo.push(files_of(save_null_model(machine.folder / "two")))
    ok(machine.run("--backend", "null"))
    before = parts(machine.output)
    manifest = machine.output / "_packhorse/manifest.json"
    new = repo.push(files_of(save_null_model(machine.folder / "three", num_labels=3)))
    done = machine.run("--backend", "null")
    assert done.returncode == 3
    assert f"begun with commit {old}" in said(done) and f"--revision {old} goes on" in said(done) and new in said(done)
    unchanged = manifest.read_bytes()
    ok(machine.run("--backend", "null", "--revision", old))
    assert (parts(machine.output), manifest.read_bytes()) == (before, unchanged)
    ok(machine.run("--backend", "null", "--overwrite"))
    assert machine.manifest()["model"]["commit"] == new


def test_a_private_model_needs_the_token_which_is_sent_and_stands_nowhere(machine: Machine, hub: Hub) -> None:
    repo = hub.model(NAME)
    repo.push(files_of(save_null_model(machine.folder / "null")))
    repo.token = TOKEN
    refused = machine.run("--backend", "null")
    assert refused.returncode == 1
    assert "private" in said(refused) and "HF_TOKEN" in said(refused)
    wrong = machine.run("--backend", "null", HF_TOKEN=TOKEN + "x")
    assert wrong.returncode == 1
    assert "your token does not open it" in said(wrong)
    done = machine.run("--backend", "null", HF_TOKEN=TOKEN)
    ok(done)
    assert any(r.headers.get("authorization") == f"Bearer {TOKEN}" for r in hub.requests)
    for output in (refused, wrong, done):
        assert TOKEN not in output.stdout + output.stderr
    written = [p for p in machine.output.rglob("*") if p.is_file()]
    assert len(written) > 3
    assert not any(TOKEN.encode() in p.read_bytes() for p in written)


def test_a_gated_model_says_what_to_do(machine: Machine, hub: Hub) -> None:
    repo = hub.model(NAME)
    repo.push(files_of(save_null_model(machine.folder / "null")))
    repo.token, repo.error_code = TOKEN, "GatedRepo"
    for variables in ({}, {"HF_TOKEN": "hf_another"}):
        done = machine.run("--backend", "null", **variables)
        assert done.returncode == 1
        assert "gated" in said(done) and "Agree on the page of org/small" in said(done)
    assert "your token does not open it" in said(done)


def test_a_name_that_is_not_there_and_a_hub_that_is_not_there(machine: Machine) -> None:
    done = machine.run("org/nothing", "--backend", "null", HF_TOKEN="hf_x")
    assert done.returncode == 1
    assert "no such model" in said(done) and "(404)" in said(done) and "Traceback" not in done.stderr
    away = machine.run("org/nothing", "--backend", "null", HF_ENDPOINT="http://127.0.0.1:9")
    assert away.returncode == 1
    assert "the hub cannot be reached" in said(away) and "the cache has no whole copy" in said(away)
    offline = machine.run("org/nothing", "--backend", "null", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE is set" in said(offline)
    assert machine.run("a//b", "--backend", "null").returncode == 2


def test_weights_that_can_run_code_are_not_downloaded(machine: Machine, hub: Hub) -> None:
    hub.model(NAME).push(files_of(save_null_model(machine.folder / "null")) | {"pytorch_model.bin": b"x" * 9_000})
    done = machine.run()
    assert done.returncode == 1
    assert "pytorch_model.bin" in said(done) and "can run code" in said(done) and "save_pretrained" in said(done)
    assert not hub.gets("pytorch_model.bin")


def test_a_download_that_breaks_off_goes_on_where_it_was(machine: Machine, hub: Hub) -> None:
    """The client keeps what came in pieces of 10 MiB, and asks for the rest by itself."""
    large = bytes(range(65, 91)) * 450_000  # 11.7 MB
    hub.model(NAME).push(files_of(save_null_model(machine.folder / "null")) | {"vocab.txt": large})
    hub.break_after["vocab.txt"], hub.breaks_left["vocab.txt"] = 11_000_000, 1
    ok(machine.run("--backend", "null"))
    assert [r.headers.get("range") for r in hub.gets("vocab.txt")] == [None, f"bytes={10 << 20}-"]
    cached = next((machine.folder / "hf").rglob("vocab.txt"))
    assert cached.read_bytes() == large


def test_a_download_that_breaks_off_for_good_is_told_and_done_the_next_time(machine: Machine, hub: Hub) -> None:
    files = files_of(save_null_model(machine.folder / "null")) | {"vocab.txt": b"x" * 9_000}
    hub.model(NAME).push(files)
    hub.break_after["vocab.txt"], hub.breaks_left["vocab.txt"] = 0, 100
    done = machine.run("--backend", "null")
    assert done.returncode == 1
    assert "the connection to the hub broke" in said(done) and "The same command goes on" in said(done)
    assert not (machine.output / "_packhorse/manifest.json").exists()
    hub.breaks_left.clear()
    seen = len(hub.gets("tokenizer.json"))
    ok(machine.run("--backend", "null"))
    assert len(hub.gets("tokenizer.json")) == seen  # a whole file is not fetched again
    assert set(machine.manifest()["model"]["files"]) == set(files)


def test_sharded_weights_and_a_cache_that_lacks_one(machine: Machine, hub: Hub, bert: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    sharded = machine.folder / "sharded"
    AutoModelForSequenceClassification.from_pretrained(bert).save_pretrained(sharded, max_shard_size="40KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (sharded / name).write_bytes((bert / name).read_bytes())
    shards = sorted(p.name for p in sharded.glob("*.safetensors"))
    assert len(shards) > 1
    hub.model(NAME).push(files_of(sharded))
    ok(machine.run("--precision", "fp32"))
    ok(machine.run(bert, "--precision", "fp32", output=machine.folder / "local"))
    assert parts(machine.output) == parts(machine.folder / "local")
    (next((machine.folder / "hf").rglob(shards[1]))).unlink()
    done = machine.run("--precision", "fp32", "--overwrite", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert shards[1] in said(done) or "no whole copy" in said(done)


GRAPHS = {"onnx": ["model.onnx"], "openvino": ["openvino_model.xml", "openvino_model.bin", "packhorse.json"]}


@pytest.mark.parametrize(("backend", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_hub_graph_is_run_by_its_backend_and_by_no_other(
    machine: Machine, hub: Hub, bert: Path, backend: str, package: str
) -> None:
    pytest.importorskip(package)
    exported = machine.folder / "exported"
    ok(forked("export", bert, exported, "--backend", backend))
    graph = {f"{backend}/{name}": (exported / name).read_bytes() for name in GRAPHS[backend]}
    others = {f"{backend}/model_O4.onnx": b"x" * 9_000, f"{backend}/config.json": b"{}"}
    hub.model(NAME).push(files_of(bert) | graph | others)
    ok(machine.run("--backend", backend, "--precision", "fp32"))
    assert all(hub.gets(name) for name in graph)
    assert not any(hub.gets(name) for name in [*others, "model.safetensors"])
    assert set(graph) <= set(machine.manifest()["model"]["files"])
    torch, again = machine.folder / "torch", machine.folder / "again"
    ok(machine.run("--precision", "fp32", "--backend", "torch", output=torch))
    assert not set(graph) & set(machine.manifest(torch)["model"]["files"])
    one, other = (pq.read_table(o)["score"].to_numpy() for o in (machine.output, torch))
    assert abs(one - other).max() < 1e-4
    ok(machine.run("--backend", backend, "--precision", "fp32", output=again))  # now that weights lie there too
    assert machine.manifest(again)["model"] == machine.manifest()["model"]
    assert parts(again) == parts(machine.output)


def test_an_export_is_made_of_the_weights(machine: Machine, hub: Hub, bert: Path) -> None:
    pytest.importorskip("onnxruntime")
    hub.model(NAME).push(files_of(bert) | {"onnx/model.onnx": b"x" * 9_000})
    made = ("export", NAME, machine.folder / "made", "--backend", "onnx")
    ok(forked(*made, env=machine.environment(), preload=TORCH))
    assert not hub.gets("onnx/model.onnx")
    assert (machine.folder / "made/model.onnx").stat().st_size > 9_000


def test_an_adapter_is_no_model_and_a_file_outside_is_refused(machine: Machine, hub: Hub) -> None:
    hub.model(NAME).push({"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    done = machine.run("--backend", "null")
    assert done.returncode == 2
    assert "give its base model as the model, and this with --adapter" in said(done)
    hub.model(NAME).push(files_of(save_null_model(machine.folder / "null")) | {"../../evil.json": b"{}"})
    done = machine.run("--backend", "null")
    assert done.returncode == 3
    assert "leads outside" in said(done)
