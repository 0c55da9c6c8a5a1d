"""Settings that must be in place before JAX is imported."""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
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
        # Else the kernels of a program are spread over dozens of LLVM modules, for threads to
        # compile; the workers have all cores at work as it is, and one module is less work.
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
).strip()

# Many tests compile the same program; the workers share what they compiled, and keep it.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# Tracing makes a great many small objects that live on. Looking through them for cycles every 700
# objects, as Python does, takes a tenth of the time of tracing and lowering a training step.
gc.set_threshold(20_000, 10, 10)

import pytest  # noqa: E402

# The files that take longest. They are begun first, so that no worker is left with one at the end.
LONGEST = (
    "test_guide",
    "test_contract",
    "test_contract_programs",
    "test_ground_truth_family",
    "test_train",
    "test_ablate",
    "test_plan",
    "test_processes",
    "test_ground_truth",
)


def pytest_collection_modifyitems(items):
    """The longest files first, the others as they are."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def tiny_config_file(tmp_path_factory):
    """A config file whose token store is prepared; see `support.tiny_run`."""
    from jaxpretrain.assemble import prepare_store
    from support import tiny_run

    file = tiny_run.write(tmp_path_factory.mktemp("tiny"))
    prepare_store(tiny_run.config(file))
    return file
