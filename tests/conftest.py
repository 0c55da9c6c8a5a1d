"""Settings that must be in place before JAX is imported."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        # Meshes are tested on eight simulated devices.
        "--xla_force_host_platform_device_count=8",
        # The programs here are small, so compiling them takes longer than running them: half the
        # time of tests/test_step.py was LLVM's optimiser.
        "--xla_backend_optimization_level=0",
    ]
).strip()
