"""Saving and restoring with Orbax, and telling a good checkpoint from a damaged one."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from jaxpretrain.errors import UserError
from jaxpretrain.processes import all_agree, is_first, say, wait_for_all
from jaxpretrain.sharding import Placement
from jaxpretrain.state import TrainState, fingerprint
from jaxpretrain.storage import AnyPath, access, is_of_client, is_remote, move

# What says that a file could not be reached, which is not to say that it is damaged.
_OUT_OF_REACH = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED")

# Of an array that all devices have, Orbax lets each write a slice, and cutting it is a program for
# each slice of each shape; below a megabyte one device writes it whole.
_WORTH_CUTTING = 2**20


class _Arrays(ocp.type_handlers.ArrayHandler):
    """Reads all arrays to the end, also when one cannot be read.

    Orbax closes its event loop at the first failure, and whatever was still being read would print
    a stack trace, when it arrives or when it is thrown away.
    """

    async def metadata(self, infos: Any) -> Any:
        async with _all_begun_here():
            return await super().metadata(infos)

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        async with _all_begun_here():
            return await super().deserialize(infos, args)


@asynccontextmanager
async def _all_begun_here() -> AsyncIterator[None]:
    """Waits at the end for all tasks that were begun within."""
    others = asyncio.all_tasks()
    try:
        yield
    finally:
        while unfinished := asyncio.all_tasks() - others:
            await asyncio.gather(*unfinished, return_exceptions=True)


ocp.type_handlers.register_type_handler(
    jax.Array,
    _Arrays(min_slice_bytes_for_replica_parallel=_WORTH_CUTTING),
    override=True,
)


class Damaged(Exception):
    """A checkpoint that cannot be read, or does not hold what was saved."""


class Checkpoints:
    """The checkpoints of one run: the latest, and the best by held-out loss.

    Saving is asynchronous: the arrays are copied and written while training goes on. A checkpoint
    appears under its name only when it is whole. Each has a `fingerprint` of every array, and what
    is restored must have the same.

    Args:
        folder: made if it does not exist, unless it is only read.
        placement: of the state.
        keep_latest: how many of the latest to keep.
        read_only: for a look at a run that another process may be training.
    """

    def __init__(
        self,
        folder: AnyPath,
        placement: Placement,
        *,
        keep_latest: int = 1,
        read_only: bool = False,
    ):
        self._folder = folder
        self._path = folder if is_remote(folder) else folder.absolute()
        self._fingerprint = _jit_fingerprint(placement)
        best = BestN(
            get_metric_fn=lambda metrics: -metrics["loss"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            self._path,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep_latest), best]),
                best_fn=lambda metrics: -metrics["loss"],
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def latest(self) -> int | None:
        """Step of the latest checkpoint, or None."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the checkpoint with the lowest held-out loss; the latest if none has one."""
        best = self._manager.best_step()
        return self.latest() if best is None else best

    def save(self, state: TrainState, held_out_loss: float | None = None) -> None:
        """Starts saving a state under its step; returns when its arrays have been copied.

        Raises:
            UserError: this or the save before could not be written.
        """
        # A loss that is not a number would rank as the best.
        good = held_out_loss is not None and math.isfinite(held_out_loss)
        metrics = {"loss": held_out_loss} if good else None
        sums = {path: int(value) for path, value in self._sums(state).items()}
        try:
            self._manager.save(
                int(state.step),
                args=ocp.args.StandardSave(state),
                metrics=metrics,
                custom_metadata={"fingerprint": sums},
                force=True,
            )
        except Exception as error:
            raise self._unwritten(error) from error

    def has_loss(self, step: int) -> bool:
        """Whether a checkpoint was saved with its held-out loss."""
        return bool(self._manager.metrics(step))

    def save_again(self, state: TrainState, held_out_loss: float) -> None:
        """Saves a state anew, with its loss, where it was saved without: see `save`."""
        self._manager.delete(int(state.step))
        self.save(state, held_out_loss)

    def restore_latest(self, abstract: TrainState) -> TrainState | None:
        """The state of the latest checkpoint that is good; None if there is none at all.

        Damaged ones are named and put aside, into ``damaged`` beside the checkpoints.

        Raises:
            UserError: all of them are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        reason = None
        for step in steps:
            try:
                state = self.restore(step, abstract)
            except Damaged as error:
                reason = error
                continue
            for bad in steps[: steps.index(step)]:
                self._put_aside(bad)
            if reason:
                say(f"warning: {reason}: put aside, and going on from checkpoint {step}")
            return state
        if reason:
            raise UserError(
                f"{reason}, and there is no other that is good: give another --workdir, or delete "
                f"{self._folder} to begin anew"
            )
        return None

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state saved at a step, placed as the abstract state says, whatever mesh saved it.

        Raises:
            Damaged: it cannot be read, or is not what was saved; in every process, if it is so in
                one.
        """
        state, saved = self._read(
            step, ocp.StandardCheckpointHandler(), lambda: ocp.args.StandardRestore(abstract)
        )
        self._check(step, saved, self._sums(state))
        return state

    def restore_params(self, step: int, abstract: Any) -> Any:
        """The parameters alone; see `restore`."""
        item = {"params": abstract}
        how = ocp.checkpoint_utils.construct_restore_args(item)
        restored, saved = self._read(
            step,
            ocp.PyTreeCheckpointHandler(),
            lambda: ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True),
        )
        sums = self._sums(restored["params"])
        self._check(step, saved, {f".params{path}": value for path, value in sums.items()})
        return restored["params"]

    def wait(self) -> None:
        """Returns when what is being saved is there.

        Raises:
            UserError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Waits as `wait` does, and ends the saving."""
        try:
            self.wait()
        except UserError:
            with suppress(Exception):  # the same once more
                self._manager.close()
            raise
        self._manager.close()

    def _sums(self, tree: Any) -> dict[str, np.ndarray]:
        return jax.device_get(self._fingerprint(tree))

    def _read(self, step: int, handler: Any, args: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
        """What a handler makes of a step's arrays, and their fingerprints: for all or for none.

        The manager's own `restore` ends with a barrier, at which processes that could read their
        parts would wait for one that could not.
        """
        found, error = None, None
        try:
            arrays = handler.restore(self._path / str(step) / "default", args=args())
            found = arrays, dict(self._manager.metadata(step).custom_metadata["fingerprint"])
        except Exception as e:
            reason = " ".join(str(e).split())[:200] or type(e).__name__
            if "RESOURCE_EXHAUSTED" in reason:  # of the devices' memory
                raise
            away = isinstance(e, OSError) and not isinstance(e, FileNotFoundError)
            if away or is_of_client(e) or any(code in reason for code in _OUT_OF_REACH):
                raise UserError(f"cannot read checkpoint {step} in {self._folder}: {reason}") from e
            error = self._damaged(step, reason)
        if not all_agree(error is None):
            raise error or self._damaged(step, "another process cannot read it")
        return found

    def _check(self, step: int, saved: dict[str, int], found: dict[str, np.ndarray]) -> None:
        wrong = [path for path, value in found.items() if saved.get(path) != int(value)]
        if not all_agree(not wrong):
            what = wrong[0] if wrong else "what another process read"
            raise self._damaged(step, f"{what} is not what was saved")

    def _damaged(self, step: int, reason: str) -> Damaged:
        return Damaged(
            f"checkpoint {step} in {self._folder} is damaged or of another model ({reason})"
        )

    def _put_aside(self, step: int) -> None:
        if is_first():
            damaged = self._folder.parent / "damaged"
            with access(f"put aside the damaged checkpoint {step} in {self._folder}"):
                name = f"{step}-{sum(1 for _ in damaged.glob(f'{step}-*')) + 1}"
                move(self._folder / str(step), damaged / name)
        wait_for_all("damaged checkpoint")
        self._manager.reload()

    def _unwritten(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:200]
        return UserError(
            f"a checkpoint could not be saved in {self._folder} ({reason}): make room or give "
            f"another --workdir; the same command goes on from checkpoint {self.latest()}"
        )


@lru_cache(maxsize=8)
def _jit_fingerprint(placement: Placement) -> Callable[[Any], dict]:
    return jax.jit(fingerprint, out_shardings=placement.whole)
