"""Several processes that are one program: how they meet, who speaks, and how they end together."""

import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxpretrain.errors import UserError

# Variables that say how many processes a launcher has started.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")


def join(
    *,
    distributed: bool = False,
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    heartbeat_seconds: int = 60,
) -> None:
    """Meets the other processes of the program, if there are any; before JAX's first computation.

    With a coordinator, the other two say who this process is. Without, SLURM and Open MPI are known
    by their variables, and `distributed` lets `jax.distributed` find out (Cloud TPU, Kubernetes).

    Args:
        distributed: whether there are other processes, when no variable says so.
        coordinator: ``host:port`` of process 0; empty means to find out.
        processes: how many there are.
        process: which one this is, from 0.
        heartbeat_seconds: a process that has not been heard of for so long is dead, and ends the
            others.

    Raises:
        UserError: arguments that do not go together, or the others could not be found.
    """
    explicit = (coordinator, processes is not None, process is not None)
    if any(explicit) and not all(explicit):
        raise UserError("--coordinator, --processes and --process go together: give all three")
    if processes is not None and not 0 <= process < processes:
        raise UserError(f"--process is {process} of --processes {processes}: they count from 0")
    if not (any(explicit) or distributed or launched() > 1):
        return
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes,
            process,
            cluster_detection_method="deactivate" if coordinator else None,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the processes of this program could not meet ({reason}): give --coordinator "
            "HOST:PORT, --processes N and --process I to each"
        ) from None


def launched() -> int:
    """How many processes the launcher says that it has started; 1 if it says nothing."""
    return max(int(os.environ.get(name) or 1) for name in COUNTS)


def is_together() -> bool:
    """Whether there are other processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that speaks and writes."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Prints a line, in the first process only."""
    if is_first():
        print(text, flush=True)


def wait_for_all(what: str) -> None:
    """Returns when every process has come here."""
    if is_together():
        multihost_utils.sync_global_devices(what)


def all_agree(ok: bool) -> bool:
    """Whether it is so in every process; all of them ask at the same point."""
    return bool(multihost_utils.process_allgather(np.bool_(ok)).all()) if is_together() else ok


def of_first(value: float) -> float:
    """The value that the first process has; all of them ask at the same point."""
    return (
        float(multihost_utils.broadcast_one_to_all(np.float64(value))) if is_together() else value
    )


def end(status: int) -> None:
    """Ends a process that has failed, without waiting for the others, which the end of it ends.

    A process that ends in the usual way first waits until all the others do.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
