"""Keeping compiled programs from one start to the next.

It has to be said before JAX is imported, so it is said by an environment variable.
"""

import hashlib
import os
import platform
from pathlib import Path

LARGEST = 4 * 2**30  # bytes


def ask() -> None:
    """Lets JAX keep what it compiled, so that the same program starts at once the next time.

    In a folder for machines with this processor's instructions, in the user's cache; where
    JAX_COMPILATION_CACHE_DIR is set, there, or nowhere if it is empty. What has not been used for
    longest goes when the folder is full.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxpretrain"
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none that can be written
        return
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        instructions = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        instructions = platform.processor()
    machine = hashlib.sha256(f"{platform.machine()} {instructions}".encode()).hexdigest()[:8]
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache / f"compiled-{machine}")
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(LARGEST))
