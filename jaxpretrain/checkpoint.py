"""Saving and restoring with Orbax, and what a run must agree with before it goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from jaxpretrain.config import flatten
from jaxpretrain.errors import UserError
from jaxpretrain.state import TrainState

# Keys that may change between two parts of a run: they do not touch the parameters.
FREE_KEYS = (
    "store.",
    "data.loader",
    "data.prefetch",
    "mesh.",
    "checkpoint.",
    "evaluate.",
    "train.stop_at",
    "train.log_every",
    "model.attention",
    "model.scan_layers",
    "model.remat",
)


class Checkpoints:
    """The checkpoints of one run: the latest, and the best by held-out loss.

    Saving is asynchronous: the arrays are copied and written while training goes on. A checkpoint
    appears under its name only when it is whole.

    Args:
        folder: made if it does not exist.
        keep_latest: how many of the latest to keep.
    """

    def __init__(self, folder: Path, *, keep_latest: int = 1):
        best = BestN(
            get_metric_fn=lambda metrics: -metrics["loss"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep_latest), best]),
                best_fn=lambda metrics: -metrics["loss"],
                cleanup_tmp_directories=True,
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
        """Starts saving a state under its step; returns when its arrays have been copied."""
        metrics = None if held_out_loss is None else {"loss": held_out_loss}
        self._manager.save(
            int(state.step), args=ocp.args.StandardSave(state), metrics=metrics, force=True
        )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state saved at a step, placed as the abstract state says, whatever mesh saved it."""
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def restore_params(self, step: int, abstract: Any) -> Any:
        """The parameters alone."""
        restored = self._manager.restore(
            step,
            args=ocp.args.PyTreeRestore(
                item={"params": abstract},
                restore_args=ocp.checkpoint_utils.construct_restore_args({"params": abstract}),
                partial_restore=True,
            ),
        )
        return restored["params"]

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def check_same_run(workdir: Path, config: Mapping[str, Any], identity: Mapping[str, str]) -> None:
    """Raises UserError unless a workdir's stored run is the one about to go on.

    Args:
        workdir: a folder with ``config.json`` and ``run.json``.
        config: the config about to run, as dotted keys and values.
        identity: name and checksum of each thing that must be the same (tokenizer, store).
    """
    stored = flatten(json.loads((workdir / "config.json").read_text()))
    different = [
        key
        for key in sorted(stored.keys() | config.keys())
        if not key.startswith(FREE_KEYS) and stored.get(key) != config.get(key)
    ]
    if different:
        key, more = different[0], len(different) - 1
        others = f" (and {more} more)" if more else ""
        raise UserError(
            f"{workdir} holds a run with config.{key} = {stored.get(key)!r}, and now it is "
            f"{config.get(key)!r}{others}: go on with the same config, or give another --workdir"
        )
    known = json.loads((workdir / "run.json").read_text())
    for name, checksum in identity.items():
        if known.get(name) != checksum:
            raise UserError(
                f"{workdir} holds a run with another {name} (sha256 {known.get(name, '')[:12]}…, "
                f"now {checksum[:12]}…): point config.store.path to the store that it began with, "
                "or give another --workdir"
            )
