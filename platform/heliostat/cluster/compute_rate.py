"""How fast a worker's device computes: a vendor's stated peak, or a measured rate for CPUs.

Nobody states a peak for a CPU that means anything for training, so there a matrix product is timed
for half a second. The figure is for time estimates only: it is no peak, and no MFU is made of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from heliostat.cluster.hardware import find_device

PROBE_S = 0.5
_PROBE_WIDTH = 1024


@dataclass(frozen=True)
class ComputeRate:
    """Operations per second, and where the figure comes from."""

    flops_per_s: float
    source: str
    """`dense bf16 peak of H100 SXM as its vendor states it`, for people to read."""
    is_per_machine: bool
    """Whether all workers of a machine share it (CPUs), or each has it for itself (GPUs)."""


def stated_rate(device_name: str, precision: str) -> ComputeRate | None:
    """The dense peak of a device; None when no vendor states one."""
    device = find_device(device_name)
    if device is None or precision not in device.peaks:
        return None
    return ComputeRate(
        flops_per_s=device.peaks[precision],
        source=f"dense {precision} peak of {device.name} as its vendor states it",
        is_per_machine=False,
    )


def measured_cpu_rate(precision: str, seconds: float = PROBE_S) -> ComputeRate:
    """Time matrix products on all cores of this machine."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(_PROBE_WIDTH, _PROBE_WIDTH, dtype=dtype)
    b = torch.ones(_PROBE_WIDTH, _PROBE_WIDTH, dtype=dtype)
    out = torch.mm(a, b)
    products = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        torch.mm(a, b, out=out)
        products += 1
    kind = "bf16" if precision == "bf16" else "fp32"
    return ComputeRate(
        flops_per_s=products * 2 * _PROBE_WIDTH**3 / elapsed,
        source=f"{kind} matrix products measured for {seconds:g} s on this machine's CPU, "
        f"{torch.get_num_threads()} threads",
        is_per_machine=True,
    )
