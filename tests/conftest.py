"""Settings that must be in place before JAX is imported."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        # Meshes are tested on eight simulated devices.
        "--xla_force_host_platform_device_count=8",
        # The programs here are small, and compiling them takes longer than running them; those that
        # run long ask for more (`support.truth`).
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
).strip()

# Many tests compile the same program; the workers share what they compiled, and keep it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def tiny_config_file(tmp_path_factory):
    """A config file whose token store is prepared; see `support.tiny_run`."""
    from jaxpretrain.assemble import prepare_store
    from support import tiny_run

    file = tiny_run.write(tmp_path_factory.mktemp("tiny"))
    prepare_store(tiny_run.config(file))
    return file
