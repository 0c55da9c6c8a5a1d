"""What XLA's compilers are told, where what they choose by themselves is worse."""

import os

# Where parameters are divided, as by FSDP, XLA may gather them piece by piece and multiply each by
# itself, to have something to do meanwhile ("windowed einsum"). The sums of all pieces then go
# through the memory once for each: four times the traffic of a whole step of `configs/llama_1b.py`
# (`benchmarks/LOG.md`). Products are smaller than this many MB, so it never does.
_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}}


def options(platform: str) -> dict[str, int]:
    """Options for `jax.jit`, but for those that the user has set in ``LIBTPU_INIT_ARGS``.

    Args:
        platform: of the devices: "cpu", "gpu" or "tpu".
    """
    said = os.environ.get("LIBTPU_INIT_ARGS", "")
    return {name: value for name, value in _OPTIONS.get(platform, {}).items() if name not in said}
