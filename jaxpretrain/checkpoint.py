"""Saving and restoring with Orbax, and what a run must agree with before it goes on."""

import json
import math
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
from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.state import TrainState

# What may change between two parts of a run, because it does not touch the parameters: whole
# sections (the token store and the tokenizer are compared by their checksums), and single keys.
FREE_SECTIONS = ("source", "store", "tokenizer", "mesh", "checkpoint", "evaluate")
FREE_KEYS = {
    "data.loader",
    "data.prefetch",
    "train.stop_at",
    "train.log_every",
    "model.attention",
    "model.scan_layers",
    "model.remat",
}


class Checkpoints:
    """The checkpoints of one run: the latest, and the best by held-out loss.

    Saving is asynchronous: the arrays are copied and written while training goes on. A checkpoint
    appears under its name only when it is whole.

    Args:
        folder: made if it does not exist, unless it is only read.
        keep_latest: how many of the latest to keep.
        read_only: for a look at a run that another process may be training.
    """

    def __init__(self, folder: Path, *, keep_latest: int = 1, read_only: bool = False):
        self._folder = folder
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
        """Starts saving a state under its step; returns when its arrays have been copied."""
        # A loss that is not a number would rank as the best.
        good = held_out_loss is not None and math.isfinite(held_out_loss)
        metrics = {"loss": held_out_loss} if good else None
        self._manager.save(
            int(state.step), args=ocp.args.StandardSave(state), metrics=metrics, force=True
        )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state saved at a step, placed as the abstract state says, whatever mesh saved it."""
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except (ValueError, OSError) as error:  # JSONDecodeError is a ValueError
            raise self._unreadable(step, error) from error

    def restore_params(self, step: int, abstract: Any) -> Any:
        """The parameters alone."""
        item = {"params": abstract}
        how = ocp.checkpoint_utils.construct_restore_args(item)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.PyTreeRestore(item=item, restore_args=how, partial_restore=True),
            )
        except (ValueError, OSError) as error:
            raise self._unreadable(step, error) from error
        return restored["params"]

    def _unreadable(self, step: int, error: Exception) -> UserError:
        reason = " ".join(str(error).split())[:200]
        return UserError(
            f"checkpoint {step} in {self._folder} is damaged or of another model ({reason}): "
            "delete it to go on from the one before, or give another --workdir"
        )

    def close(self) -> None:
        """Waits for what is being saved."""
        self._manager.wait_until_finished()
        self._manager.close()


def claim_workdir(
    workdir: Path, config: Mapping[str, Any], tokenizer: Tokenizer, identity: Mapping[str, str]
) -> None:
    """Writes into an empty workdir what the run is, or checks that a used one is of the same run.

    Args:
        workdir: made if it does not exist.
        config: complete and nested.
        tokenizer: of the store.
        identity: name and SHA-256 of each thing that must be the same: tokenizer, token store.

    Raises:
        UserError: the workdir holds another run, a damaged one, or cannot be written.
    """
    if (workdir / "run.json").exists():
        check_same_config(workdir, flatten(config))
        check_identity(workdir, identity)
        return
    if any((workdir / "checkpoints").glob("[0-9]*")):
        raise UserError(
            f"{workdir} holds checkpoints but no run.json to tell what they are of: "
            "give another --workdir"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer.save(workdir / "tokenizer.model")
        (workdir / "run.json").write_text(json.dumps(identity, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the workdir {workdir}: {error.strerror}") from None


def check_same_config(workdir: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError unless the stored config agrees in all that touches the parameters.

    Args:
        workdir: a folder with ``config.json``.
        config: the config about to run, as dotted keys and values.
    """
    stored = flatten(read_json(workdir / "config.json"))
    different = [
        key
        for key in stored | config  # in the order of the config: names before what follows
        if not is_free(key) and stored.get(key) != config.get(key)
    ]
    if different:
        key, *rest = different
        others = f" ({', '.join(rest)} differ too)" if rest else ""
        raise UserError(
            f"{workdir} holds a run with config.{key} = {stored.get(key)!r}, and now it is "
            f"{config.get(key)!r}{others}: go on with the same config, or give another --workdir"
        )


def is_free(key: str) -> bool:
    """Whether a dotted key of the config may change between two parts of a run."""
    if key.startswith("source.parts.") and key.endswith(".weight"):
        return False  # the order of the rows follows from it
    return key in FREE_KEYS or key.split(".")[0] in FREE_SECTIONS


def check_identity(workdir: Path, identity: Mapping[str, str]) -> None:
    """Raises UserError unless tokenizer and token store are those that the run began with."""
    known = read_json(workdir / "run.json")
    for name, checksum in identity.items():
        if known.get(name) != checksum:
            raise UserError(
                f"{workdir} holds a run with another {name} (sha256 "
                f"{str(known.get(name, ''))[:12]}…, now {checksum[:12]}…): point "
                "config.store.path to the store that it began with, or give another --workdir"
            )


def read_json(path: Path) -> dict:
    """A JSON object of a run's folder; UserError where it is missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; give another --workdir")
    return value
