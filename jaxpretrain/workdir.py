"""The folder of a run: what it is of, and whose it is while it is trained."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from jaxpretrain.config import complete
from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.lease import SECONDS, Held, lease
from jaxpretrain.processes import say
from jaxpretrain.schema import flatten
from jaxpretrain.storage import AnyPath, access, is_remote, json_object, write

# What may change between two parts of a run, because it does not touch the parameters: whole
# sections (the token store and the tokenizer are compared by their checksums), and single keys.
FREE_SECTIONS = (
    "source",
    "store",
    "tokenizer",
    "mesh",
    "checkpoint",
    "evaluate",
    "guard",
    "track",
    "downstream",
    "tasks",
)
FREE_KEYS = {
    "data.loader",
    "data.prefetch",
    "train.stop_at",
    "train.log_every",
    "model.attention",
    "model.scan_layers",
    "model.remat",
    "model.loss_block",
}
# In the place of a checksum: of what a run has not read yet, as an imported model no text.
OPEN = "open"


@contextmanager
def sole_use(workdir: AnyPath, lease_seconds: float = SECONDS) -> Iterator[Callable[[], None]]:
    """Within, no other run can train in the workdir.

    The lock is the operating system's where the file system has such, so that it ends with the
    process, however that ends; elsewhere it is a `lease`.

    Yields:
        A function that raises UserError if a lease was lost.

    Raises:
        UserError: another run has it, or the workdir cannot be written.
    """
    owner = f"process {os.getpid()} on {os.uname().nodename}"

    def refused(who: str) -> UserError:
        return UserError(
            f"another run is training in {workdir} ({who}): wait until it ends, or give another "
            "--workdir"
        )

    is_ours = None
    with ExitStack() as held:
        with access(f"write the workdir {workdir}"):
            workdir.mkdir(parents=True, exist_ok=True)
            lock = None if is_remote(workdir) else held.enter_context((workdir / "lock").open("a+"))
        try:
            if lock is None:
                raise OSError
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise refused(lock.read().strip() or "unknown") from None
        except OSError:  # no locks here
            with access(f"write the workdir {workdir}"):
                try:
                    is_ours = held.enter_context(
                        lease(workdir / "lease.json", owner, seconds=lease_seconds, say=say)
                    )
                except Held as error:
                    raise refused(str(error)) from None
        else:
            with access(f"write the workdir {workdir}"):
                lock.truncate(0)
                lock.write(f"{owner}\n")
                lock.flush()

        def check() -> None:
            with access(f"read the workdir {workdir}"):
                lost = is_ours and not is_ours()
            if lost:
                raise UserError(
                    f"another run has taken over {workdir}, since this one was not heard of for "
                    "too long: let that one go on, or end it and start again"
                )

        yield check


def claim_workdir(
    workdir: AnyPath,
    config: Mapping[str, Any],
    tokenizer: AnyTokenizer,
    identity: Mapping[str, str],
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
    with access(f"read the workdir {workdir}"):
        begun = (workdir / "run.json").exists()
        saved = any((workdir / "checkpoints").glob("[0-9]*"))
        imported = begun and OPEN in read_json(workdir / "run.json").values()
    if begun and (saved or imported):  # else nothing of that run is left to go on with
        check_same_config(workdir, flatten(config))
        check_identity(workdir, identity)
        known = read_json(workdir / "run.json")
        if OPEN in known.values():
            if not saved:
                raise UserError(
                    f"{workdir} has no checkpoint of the model that was imported into it: the "
                    "import was cut off; delete the folder and import again"
                )
            with access(f"write the workdir {workdir}"):
                write(workdir / "run.json", json.dumps(known | identity, indent=2) + "\n")
        return
    if saved:
        raise UserError(
            f"{workdir} holds checkpoints but no run.json to tell what they are of: "
            "give another --workdir"
        )
    with access(f"write the workdir {workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
        write(workdir / "config.json", json.dumps(config, indent=2) + "\n")
        tokenizer.save(workdir / "tokenizer.model")
        write(workdir / "run.json", json.dumps(identity, indent=2) + "\n")


def open_run(workdir: AnyPath) -> dict:
    """The config, nested, of the run in a workdir.

    Raises:
        UserError: there is none.
    """
    with access(f"read the workdir {workdir}"):
        found = (workdir / "run.json").exists()
    if not found:
        raise UserError(f"{workdir} holds no run: train first, or give the --workdir of a run")
    return read_json(workdir / "config.json")


def check_same_config(workdir: AnyPath, config: Mapping[str, Any]) -> None:
    """Raises UserError unless the stored config agrees in all that touches the parameters.

    Args:
        workdir: a folder with ``config.json``.
        config: the config about to run, as dotted keys and values.
    """
    raw = read_json(workdir / "config.json")
    stored = flatten(raw)
    if config.keys() - stored.keys():  # a run of an older version has what is now the default
        with suppress(UserError):
            now = flatten(complete(raw).to_dict())
            stored |= {key: now[key] for key in config if key in now and key not in stored}
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


def check_identity(workdir: AnyPath, identity: Mapping[str, str]) -> None:
    """Raises UserError unless tokenizer and token store are those that the run began with."""
    known = read_json(workdir / "run.json")
    for name, checksum in identity.items():
        if known.get(name) not in (checksum, OPEN):
            raise UserError(
                f"{workdir} holds a run with another {name} (sha256 "
                f"{str(known.get(name, ''))[:12]}…, now {checksum[:12]}…): point "
                "config.store.path to the store that it began with, or give another --workdir"
            )


def read_json(path: AnyPath) -> dict:
    """A JSON object of a run's folder; UserError where it is missing or damaged."""
    return json_object(path, "; give another --workdir")
