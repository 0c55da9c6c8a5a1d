"""The model of a run, from the run's folder."""

from typing import NamedTuple

from ml_collections import ConfigDict

from jaxpretrain.assemble import Pieces, build
from jaxpretrain.checkpoint import Checkpoints, Damaged
from jaxpretrain.config import complete
from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.data.tokenizer_load import load_tokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.objectives import Objective
from jaxpretrain.storage import AnyPath, access
from jaxpretrain.workdir import open_run


class Opened(NamedTuple):
    """A run's model, as far as it needs no text.

    Attributes:
        config: of the run, complete.
        tokenizer: of the run.
        objective: bound to the model.
        params: of a checkpoint.
        step: of the checkpoint.
    """

    config: ConfigDict
    tokenizer: AnyTokenizer
    objective: Objective
    params: dict
    step: int


def opened(workdir: AnyPath, which: str) -> Opened:
    """The model of a run's "best" or "latest" checkpoint; needs no token store.

    Raises:
        UserError: the folder holds no run, or no checkpoint that is good.
    """
    config = complete(open_run(workdir))
    tokenizer = load_tokenizer(workdir / "tokenizer.model")
    pieces = build(config, tokenizer.vocab)
    step, params = restored(workdir, pieces, which)
    return Opened(config, tokenizer, pieces.objective, params, step)


def restored(workdir: AnyPath, pieces: Pieces, which: str) -> tuple[int, dict]:
    """Step and parameters of a run's "best" or "latest" checkpoint.

    Raises:
        UserError: there is none, or it is damaged.
    """
    with access(f"read the workdir {workdir}"):
        saved = (workdir / "checkpoints").is_dir()
    if not saved:
        raise UserError(f"{workdir} holds no checkpoint yet: train first")
    checkpoints = Checkpoints(workdir / "checkpoints", pieces.placement, read_only=True)
    step = checkpoints.best() if which == "best" else checkpoints.latest()
    if step is None:
        raise UserError(f"{workdir} holds no checkpoint yet: train first")
    try:
        params = checkpoints.restore_params(step, pieces.abstract.params)
    except Damaged as error:
        raise UserError(f"{error}: choose another with --checkpoint") from None
    checkpoints.close()
    return step, params
