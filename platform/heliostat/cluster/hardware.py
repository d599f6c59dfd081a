"""Accelerators: dense peak arithmetic rates and memory, by the name the driver reports.

Only dense vendor figures (data sheets and architecture white papers; vendors also print twice the
rate, for 2:4 structured sparsity, which no dense training reaches). `fp32` is the rate of ordinary
32-bit arithmetic, which torch uses by default; `tf32` the rate of tensor cores on 32-bit input.
16-bit rates are those with 32-bit accumulation. A device that is not listed has no peak (None), and
neither has a CPU or a slice of a GPU (MIG): whoever divides by a peak must then show nothing.

Memory is in decimal gigabytes as printed by the vendor. The driver reports a few per cent more,
about what the CUDA context takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

PRECISIONS = ("bf16", "fp16", "fp32", "tf32")


@dataclass(frozen=True)
class Device:
    """One kind of accelerator."""

    name: str
    """Our name for it, which also identifies it in a cluster description: `H100 SXM`."""
    pattern: str
    """Matches the name that `torch.cuda.get_device_name` reports, in lower case."""
    memory_bytes: float
    peaks: Mapping[str, float] = field(hash=False)
    """FLOP/s by precision; a precision that the device has no such arithmetic for is absent."""


def _device(
    name: str, pattern: str, gigabytes: float, *, bf16: float, fp16: float, fp32: float, tf32: float
) -> Device:
    """Rates in TFLOP/s; 0 where the device has no such arithmetic."""
    rates = {"bf16": bf16, "fp16": fp16, "fp32": fp32, "tf32": tf32}
    return Device(
        name=name,
        pattern=pattern,
        memory_bytes=gigabytes * 1e9,
        peaks={precision: rate * 1e12 for precision, rate in rates.items() if rate},
    )


# The first pattern that matches decides, so narrower ones come first. `torch.cuda.get_device_name`
# calls the SXM5 H100 "NVIDIA H100 80GB HBM3" and the PCIe card "NVIDIA H100 PCIe".
DEVICES: tuple[Device, ...] = (
    _device("GB200", r"\bgb200\b", 186, bf16=2500, fp16=2500, fp32=80, tf32=1250),
    _device("B200", r"\bb200\b", 180, bf16=2250, fp16=2250, fp32=75, tf32=1125),
    _device("GH200", r"\bgh200\b", 96, bf16=989, fp16=989, fp32=67, tf32=494.5),
    _device("H200 NVL", r"\bh200 nvl\b", 141, bf16=835.5, fp16=835.5, fp32=60, tf32=417.5),
    _device("H200", r"\bh200\b", 141, bf16=989, fp16=989, fp32=67, tf32=494.5),
    _device("H100 PCIe", r"\bh100 pcie\b", 80, bf16=756, fp16=756, fp32=51, tf32=378),
    _device("H100 NVL", r"\bh100 nvl\b", 94, bf16=835.5, fp16=835.5, fp32=60, tf32=417.5),
    _device(
        "H100 SXM", r"\bh100( 80gb hbm[23]e?| sxm5?|$)", 80, bf16=989, fp16=989, fp32=67, tf32=494.5
    ),
    _device(
        "A100 80GB", r"\ba100.*80 ?gb\b|\ba100-80g$", 80, bf16=312, fp16=312, fp32=19.5, tf32=156
    ),
    _device("A100 40GB", r"\ba100\b", 40, bf16=312, fp16=312, fp32=19.5, tf32=156),
    _device("A10G", r"\ba10g\b", 24, bf16=70, fp16=70, fp32=31.2, tf32=35),
    _device("A10", r"\ba10\b", 24, bf16=125, fp16=125, fp32=31.2, tf32=62.5),
    _device("A40", r"\ba40\b", 48, bf16=149.7, fp16=149.7, fp32=37.4, tf32=74.8),
    _device("L40S", r"\bl40s\b", 48, bf16=362, fp16=362, fp32=91.6, tf32=183),
    _device("L40", r"\bl40\b", 48, bf16=181, fp16=181, fp32=90.5, tf32=90.5),
    _device("L4", r"\bl4\b", 24, bf16=121, fp16=121, fp32=30.3, tf32=60),
    _device("V100 PCIe", r"\bv100-pcie\b", 16, bf16=0, fp16=112, fp32=14, tf32=0),
    _device("V100", r"\bv100(-sxm[23])?(-(16|32)gb)?\b", 16, bf16=0, fp16=125, fp32=15.7, tf32=0),
    _device("T4", r"\b(tesla )?t4\b", 16, bf16=0, fp16=65, fp32=8.1, tf32=0),
    _device("MI300X", r"\bmi300x\b", 192, bf16=1307.4, fp16=1307.4, fp32=163.4, tf32=653.7),
)

_SLICE = re.compile(r"\bmig\b")


def find_device(name: str) -> Device | None:
    """The device that a driver's name, a Ray accelerator type or our own name stands for.

    Returns None for anything unknown, for CPUs and for slices of a device.
    """
    lowered = name.lower().strip()
    if _SLICE.search(lowered):
        return None
    for device in DEVICES:
        if lowered == device.name.lower() or re.search(device.pattern, lowered):
            return device
    return None


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense FLOP/s of a device at a precision, or None when nobody states it.

    Raises:
        ValueError: the precision is not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    device = find_device(device_name)
    return None if device is None else device.peaks.get(precision)


def memory_bytes(device_name: str) -> float | None:
    """Memory of a device, or None when it is unknown."""
    device = find_device(device_name)
    return None if device is None else device.memory_bytes
