"""Device names as drivers report them, and the figures that belong to them."""

from __future__ import annotations

import pytest

from heliostat.cluster.hardware import DEVICES, find_device, memory_bytes, peak_flops

REPORTED = {
    "NVIDIA H100 80GB HBM3": ("H100 SXM", 989e12),
    "NVIDIA H100 PCIe": ("H100 PCIe", 756e12),
    "NVIDIA H100 NVL": ("H100 NVL", 835.5e12),
    "NVIDIA H200": ("H200", 989e12),
    "NVIDIA A100-SXM4-40GB": ("A100 40GB", 312e12),
    "NVIDIA A100-SXM4-80GB": ("A100 80GB", 312e12),
    "NVIDIA A100 80GB PCIe": ("A100 80GB", 312e12),
    "A100-PCIE-40GB": ("A100 40GB", 312e12),
    "NVIDIA A10": ("A10", 125e12),
    "NVIDIA A10G": ("A10G", 70e12),
    "NVIDIA L4": ("L4", 121e12),
    "NVIDIA L40": ("L40", 181e12),
    "NVIDIA L40S": ("L40S", 362e12),
    "NVIDIA B200": ("B200", 2250e12),
    "NVIDIA GB200": ("GB200", 2500e12),
}


@pytest.mark.parametrize(("reported", "expected"), REPORTED.items())
def test_reported_name_finds_the_dense_bf16_peak(
    reported: str, expected: tuple[str, float]
) -> None:
    device = find_device(reported)
    assert device is not None
    assert (device.name, device.peaks["bf16"]) == expected


@pytest.mark.parametrize(
    "name",
    ["", "CPU", "NVIDIA H20", "NVIDIA H2000", "NVIDIA GeForce GTX 1080", "NVIDIA A1000 Laptop GPU"],
)
def test_unknown_devices_and_cpus_have_no_peak(name: str) -> None:
    assert peak_flops(name, "bf16") is None
    assert memory_bytes(name) is None


def test_a_slice_of_a_device_has_no_peak() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16") is None


def test_volta_has_fp16_but_no_bf16() -> None:
    assert peak_flops("Tesla V100-SXM2-16GB", "fp16") == 125e12
    assert peak_flops("Tesla V100-SXM2-16GB", "bf16") is None


@pytest.mark.parametrize(
    ("accelerator_type", "name"), [("H100", "H100 SXM"), ("A100-80G", "A100 80GB")]
)
def test_accelerator_types_of_ray_are_understood(accelerator_type: str, name: str) -> None:
    device = find_device(accelerator_type)
    assert device is not None
    assert device.name == name


def test_every_device_is_found_by_its_own_name() -> None:
    for device in DEVICES:
        assert find_device(device.name) is device


def test_ordinary_fp32_is_never_faster_than_16_bit() -> None:
    for device in DEVICES:
        assert device.peaks["fp32"] < device.peaks["fp16"]


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="bf16, fp16, fp32, tf32"):
        peak_flops("NVIDIA H200", "int8")
