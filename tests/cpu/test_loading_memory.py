"""Loading builds the model without weights and maps its files: peaks of processes that load 400 MB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import transformers

pytest.importorskip("accelerate")

LOADING = """
import sys, torch, transformers
from pathlib import Path
from packhorse.backends.torch.placement import Placer
from packhorse.generation import Placement

def held(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

from transformers.models.llama import modeling_llama
folder, limit, dtype, more = Path(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3]), eval(sys.argv[4])
placer = Placer(Placement("auto", {"cpu": limit, "disk": 10**10}) if limit else Placement(), "cpu")
options = placer.options(transformers.AutoModelForCausalLM, folder)
before = held("VmRSS")
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options, **more)
with torch.inference_mode():
    model(input_ids=torch.ones(1, 4, dtype=torch.long))  # mapped pages are there once they are read
print(held("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """400 MB of weights."""
    sizes = {"vocab_size": 8000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 7}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4)
    model = transformers.LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("large")
    model.save_pretrained(folder)
    return folder, sum(p.numel() * 4 for p in model.parameters())


def peak_share(large: tuple[Path, int], limit: int, dtype: str, more: str = "{}") -> float:
    """Bytes of memory that loading and a forward took at most, as a share of the weights' on the disk."""
    folder, size = large
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(folder), str(limit), dtype, more],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout) / size


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("limit", "dtype", "least", "most"),
    [
        (0.0, "float32", 0.9, 1.15),  # the weights are the pages of their file
        (0.5, "float32", 0.0, 0.6),  # those on the disk are not read
        pytest.param(0.0, "bfloat16", 0.4, 1.65, marks=pytest.mark.slow),  # half as much, and pages that may be dropped
    ],
)
def test_loading_never_holds_the_model_twice(
    large: tuple[Path, int], limit: float, dtype: str, least: float, most: float
) -> None:
    assert least < peak_share(large, int(limit * large[1]), dtype) < most


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_model_that_is_held_twice_would_be_seen(large: tuple[Path, int]) -> None:
    """Its files read whole, not mapped."""
    assert peak_share(large, 0, "float32", "{'disable_mmap': True}") > 1.8
