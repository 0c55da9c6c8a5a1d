"""What accelerators can do, by the makers' data sheets."""

from typing import NamedTuple


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
        flops: peak dense 16-bit floating-point operations per second.
        memory: bytes of its large memory.
        bandwidth: of that memory, bytes per second.
        link: bytes per second that it can send to its neighbours in one ring, both ways together:
            on a TPU along one axis of the torus, on a GPU over NVLink.
        slow_link: bytes per second that it can send to another slice; None where that is unknown.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    slow_link: float | None = None


# Google's system architecture pages, and for both links of TPUs "How to Scale Your Model" (Austin
# et al. 2025, jax-ml.github.io/scaling-book); NVIDIA's data sheets.
CHIPS = {
    "TPU v4": Chip(275e12, 32e9, 1.2e12, 9e10, 6.25e9),
    "TPU v5 lite": Chip(197e12, 16e9, 8.1e11, 9e10, 3.125e9),
    "TPU v5e": Chip(197e12, 16e9, 8.1e11, 9e10, 3.125e9),
    "TPU v5": Chip(459e12, 95e9, 2.8e12, 1.8e11, 6.25e9),
    "TPU v5p": Chip(459e12, 95e9, 2.8e12, 1.8e11, 6.25e9),
    "TPU v6 lite": Chip(918e12, 32e9, 1.6e12, 1.8e11, 1.25e10),
    "TPU v6e": Chip(918e12, 32e9, 1.6e12, 1.8e11, 1.25e10),
    "NVIDIA A100": Chip(312e12, 80e9, 2.0e12, 3e11),
    "NVIDIA H100": Chip(989e12, 80e9, 3.35e12, 4.5e11),
    "NVIDIA H100 PCIe": Chip(756e12, 80e9, 2.0e12, 6.4e10),
    "NVIDIA H100 NVL": Chip(835e12, 94e9, 3.9e12, 3e11),
    "NVIDIA H200": Chip(989e12, 141e9, 4.8e12, 4.5e11),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None where it is not known."""
    known = [name for name in CHIPS if device_kind.startswith(name)]
    return CHIPS[max(known, key=len)] if known else None
