"""Datasheets by torch's names of devices, among them names that stand in one another."""

from __future__ import annotations

import pytest

from packhorse.devices.datasheet import find_datasheet

# name as torch gives it -> dense bf16 (fp16 where the GPU has no bf16) in TFLOP/s, memory bandwidth in GB/s
KNOWN = {
    "NVIDIA B200": (2_250, 8_000),
    "NVIDIA H200": (989.4, 4_800),
    "NVIDIA H200 NVL": (835.5, 4_800),
    "NVIDIA H100 80GB HBM3": (989.4, 3_350),
    "NVIDIA H100 PCIe": (756.5, 2_000),
    "NVIDIA H100 NVL": (835.5, 3_900),
    "NVIDIA A100-SXM4-40GB": (312, 1_555),
    "A100-SXM4-40GB": (312, 1_555),
    "NVIDIA A100-PCIE-40GB": (312, 1_555),
    "NVIDIA A100-SXM4-80GB": (312, 2_039),
    "NVIDIA A100 80GB PCIe": (312, 1_935),
    "NVIDIA L40S": (362, 864),
    "NVIDIA L40": (181, 864),
    "NVIDIA L4": (121, 300),
    "NVIDIA A10": (125, 600),
    "NVIDIA A10G": (70, 600),
    "NVIDIA A30": (165, 933),
    "NVIDIA A40": (149.7, 696),
    "Tesla T4": (65, 320),
    "Tesla V100-SXM2-16GB": (125, 900),
    "Tesla V100-PCIE-32GB": (112, 900),
    "NVIDIA RTX 6000 Ada Generation": (364.2, 960),
    "NVIDIA RTX A6000": (154.8, 768),
    "NVIDIA GeForce RTX 5090": (209.5, 1_792),
    "NVIDIA GeForce RTX 4090": (165.2, 1_008),
    "NVIDIA GeForce RTX 3090": (71, 936),
    "AMD Instinct MI300X": (1307.4, 5_300),
    "AMD Instinct MI250X": (191.5, 1_638.4),
}
UNKNOWN = [
    "", "NVIDIA", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA A1000", "NVIDIA A16", "NVIDIA GB200",
    "NVIDIA RTX 6000", "Quadro RTX 6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "NVIDIA H800",
    "NVIDIA L400", "cpu AMD EPYC", "mps Apple M2", "AMD Instinct MI250X/MI250",
]  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_a_listed_gpu_is_found_by_its_name(name: str) -> None:
    sheet = find_datasheet(name)
    assert sheet is not None
    half = sheet.flops_per_s.get("bf16", sheet.flops_per_s["fp16"])
    assert (half, sheet.bytes_per_s) == pytest.approx((KNOWN[name][0] * 1e12, KNOWN[name][1] * 1e9))


@pytest.mark.parametrize("name", UNKNOWN)
def test_any_other_name_is_unknown(name: str) -> None:
    assert find_datasheet(name) is None


@pytest.mark.parametrize("name", KNOWN)
def test_the_peaks_of_a_gpu_fit_each_other(name: str) -> None:
    """fp32 on plain units is below 16 bits on tensor cores, TF32 at most half of that, 8 bits at least as much."""
    sheet = find_datasheet(name)
    assert sheet is not None
    peaks = sheet.flops_per_s
    assert set(peaks) <= {"fp32", "tf32", "bf16", "fp16", "int8", "fp8"} and {"fp32", "fp16"} <= set(peaks)
    assert peaks.get("bf16", peaks["fp16"]) == peaks["fp16"] > peaks["fp32"]
    assert peaks.get("tf32", 0.0) <= 0.51 * peaks["fp16"]
    assert all(peaks[name] >= peaks["fp16"] for name in ("int8", "fp8") if name in peaks)
    assert 1e9 < sheet.bytes_per_s < peaks["fp32"]
