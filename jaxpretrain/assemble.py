"""From a complete config to the pieces that training and evaluation work with."""

import copy
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxpretrain import config as config_lib
from jaxpretrain.data import store_copy
from jaxpretrain.data.order import Order
from jaxpretrain.data.pipeline import eval_batches, rows_here, to_device, train_batches
from jaxpretrain.data.prepare import prepare
from jaxpretrain.data.prepare_request import tokenizer_request
from jaxpretrain.data.rows import DocumentRows, PackedRows
from jaxpretrain.data.store import Store
from jaxpretrain.data.vocab import Vocab
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation.downstream import Model
from jaxpretrain.evaluation.heldout import HeldOut, held_out
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.objectives import Objective
from jaxpretrain.optim import Optimizer
from jaxpretrain.sharding import MESH_AXES, Placement, check_batch, make_mesh
from jaxpretrain.state import TrainState, abstract_state
from jaxpretrain.step import jit_eval_step, jit_train_step
from jaxpretrain.storage import AnyPath, path_of
from jaxpretrain.types import Batch

VIEWS = {"packed": PackedRows, "document": DocumentRows}


class Pieces(NamedTuple):
    """Everything that a config and a store determine; nothing is compiled yet.

    `build` can do without a store, for what reads no text.
    """

    config: ConfigDict
    store: Store | None
    objective: Objective
    optimizer: Optimizer
    placement: Placement
    abstract: TrainState


def store_path(config: ConfigDict) -> AnyPath:
    """Where the config's token store is: `store.path`, or a folder named after what is in it."""
    if config.store.path:
        return path_of(config.store.path)
    content = {
        "source": config.source.to_dict(),
        "tokenizer": config.tokenizer.to_dict(),
        "fractions": [config.store.validation_fraction, config.store.test_fraction],
    }
    if config.source.name == "mixture":  # weights are applied when reading
        for part in content["source"]["parts"].values():
            del part["weight"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Path("runs/stores") / f"{config.source.name}-{digest[:10]}"


def prepare_store(config: ConfigDict, *, overwrite: bool = False) -> Store:
    """The ``prepare`` command: source → tokenizer → token store."""
    named, _ = config_lib.sources(config)
    path = store_path(config)
    folder = store_copy.folder_of(path, config.store.cache)
    if store_copy.exists(path) and not overwrite:
        store_copy.fetch(path, folder)
    store = prepare(
        folder,
        sources=named,
        tokenizer_args=config.tokenizer.to_dict(),
        validation_fraction=config.store.validation_fraction,
        test_fraction=config.store.test_fraction,
        workers=config.store.workers,
        overwrite=overwrite,
    )
    store_copy.publish(folder, path)
    for split in ("validation", "test"):
        if not sum(token_set.documents for token_set in store.sets(split)):
            fraction = config.store[f"{split}_fraction"]
            print(
                f"warning: the {split} split has no documents, so nothing can be measured on it: "
                f"raise store.{split}_fraction, now {fraction}, and prepare again",
                file=sys.stderr,
            )
    return store


def assemble(config: ConfigDict, *, verify: bool = False) -> Pieces:
    """Opens the store and makes the objective, optimizer, mesh and the shapes of the state.

    Args:
        config: complete.
        verify: check the checksum of every file of the store.

    Raises:
        UserError: no store yet, a damaged one, or values that do not fit this machine.
    """
    store = open_store(config, verify=verify)
    return build(config, store.tokenizer.vocab, store=store)


def open_store(config: ConfigDict, *, verify: bool = False) -> Store:
    """The config's token store; see `assemble`."""
    path = store_path(config)
    if not store_copy.exists(path):
        raise UserError(
            f"there is no token store at {path}: run 'jaxpretrain prepare' with the same --config"
        )
    folder = store_copy.folder_of(path, config.store.cache)
    store_copy.fetch(path, folder)
    store = Store.open(folder, verify=verify)
    check_store(config, store)
    return store


def build(
    config: ConfigDict, vocab: Vocab, *, store: Store | None = None, devices: list | None = None
) -> Pieces:
    """The pieces that need no text, only a vocabulary; see `assemble`.

    Args:
        config: complete.
        vocab: of the tokenizer.
        store: goes into the pieces.
        devices: of the mesh; None means JAX's.
    """
    mesh = make_mesh(**{axis: config.mesh[axis] for axis in MESH_AXES}, devices=devices)
    placement = Placement(mesh, config.mesh.rules.to_dict())
    length, rows, parts = config.data.length, config.data.batch_size, config.train.microbatches
    check_batch(placement, rows, parts)
    backbone = Backbone(config_lib.model_config(config, vocab.size))
    objective = config_lib.make_objective(config).bind(backbone, vocab)
    row_view(config, objective)
    objective.check_run(
        length=length, batch_size=rows, devices=placement.parts("rows"), microbatches=parts
    )
    longest = objective.longest_input(length, rows)
    if longest % placement.parts("length"):
        raise UserError(
            f"{objective.name} makes inputs of {longest} positions out of rows of {length}, which "
            f"do not divide over mesh.context {placement.parts('length')}: change data.length"
        )
    optimizer = config_lib.optimizer(config)
    abstract = abstract_state(objective, optimizer, placement)
    return Pieces(config, store, objective, optimizer, placement, abstract)


def row_view(config: ConfigDict, objective: Objective) -> type[PackedRows | DocumentRows]:
    """How rows are cut: as `data.view` says, or as the objective prefers.

    Raises:
        UserError: the objective cannot read rows that are cut so.
    """
    asked = config.data.view
    view = objective.views[0] if asked == "auto" else asked
    if view not in objective.views:
        raise UserError(
            f"data.view is {asked!r}, and {objective.name} needs {objective.views[0]!r} rows: set "
            f"data.view={objective.views[0]}, or leave it at 'auto'"
        )
    return VIEWS[view]


def check_store(config: ConfigDict, store: Store) -> None:
    """Raises UserError where a store was prepared otherwise than the config says.

    Where the text came from may differ: a store can be copied to a machine that lacks the source.
    """
    request = store.manifest["request"]
    asked, found = {}, {}
    if not config.tokenizer.file or Path(config.tokenizer.file).exists():
        training, _ = tokenizer_request(**config.tokenizer)
        asked = {f"tokenizer.{key}": value for key, value in training.items()}
        found = {f"tokenizer.{key}": value for key, value in request["tokenizer"].items()}
    for key in ("validation_fraction", "test_fraction"):
        asked[f"store.{key}"], found[f"store.{key}"] = config.store[key], request["split"][key]
    asked["source names"] = sorted(config_lib.sources(config)[0])
    found["source names"] = sorted(request["sources"])
    for key in sorted(asked.keys() | found.keys()):
        if asked.get(key) != found.get(key):
            raise UserError(
                f"the token store {store.path} was prepared with {key} {found.get(key)!r}, and "
                f"the config says {asked.get(key)!r}: make them agree, or prepare another store"
            )


def training_batches(pieces: Pieces, start: int, stop: int) -> Iterator[Batch]:
    """The batches at positions ``[start, stop)`` of the training stream, on the devices."""
    placed, batch_size = pieces.placement.batch, pieces.config.data.batch_size
    batches = stored_batches(pieces, start, stop, rows_here(placed, batch_size))
    return to_device(batches, placed, batch_size, pieces.config.data.prefetch)


def read_batch(pieces: Pieces, position: int) -> Batch:
    """The whole batch at a position of the training stream, in memory."""
    return next(stored_batches(pieces, position, position + 1, None, loader="threads"))


def stored_batches(
    pieces: Pieces, start: int, stop: int, share: np.ndarray | None, loader: str = ""
) -> Iterator[Batch]:
    """Batches ``[start, stop)`` of the training stream, or a share of their rows, in memory."""
    config, objective = pieces.config, pieces.objective
    sets = pieces.store.sets("train")
    rows = row_view(config, objective)(sets, config.data.length)
    _, weights = config_lib.sources(config)
    if weights is not None:
        weights = [weights[token_set.name] for token_set in sets]
    order = Order(rows.rows_per_set, weights=weights, seed=config.seed, names=rows.names)
    return train_batches(
        rows,
        order,
        batch_size=config.data.batch_size,
        start_step=start,
        stop_step=stop,
        pad_id=objective.vocab.pad,
        share=share,
        loader=loader or config.data.loader,
    )


def held_out_rows(pieces: Pieces, split: str, source: str = "") -> PackedRows | DocumentRows:
    """The rows of a split, or of one source in it.

    Raises:
        UserError: it has none.
    """
    view = row_view(pieces.config, pieces.objective)
    sets = [one for one in pieces.store.sets(split) if source in ("", one.name)]
    rows = view(sets, pieces.config.data.length)
    if not rows.rows_total:
        raise UserError(
            f"the {split} split of {pieces.store.path} has no documents: raise "
            f"store.{split}_fraction, now {pieces.config.store[f'{split}_fraction']}, "
            "and prepare again"
        )
    return rows


def held_out_batches(
    pieces: Pieces, split: str, limit: int = 0, source: str = ""
) -> Iterator[Batch]:
    """All rows of a split (or so many batches of them), on the devices."""
    config, objective = pieces.config, pieces.objective
    rows = held_out_rows(pieces, split, source)
    batches = eval_batches(
        rows,
        batch_size=config.data.batch_size,
        pad_id=objective.vocab.pad,
        share=rows_here(pieces.placement.batch, config.data.batch_size),
        loader="threads",  # nothing to gain from tf.data for a few batches
        limit=limit,
        scattered=isinstance(rows, DocumentRows),
    )
    return to_device(batches, pieces.placement.batch, config.data.batch_size, config.data.prefetch)


def training_counts(pieces: Pieces) -> np.ndarray:
    """How often each token is read in training, up to a factor: ``[vocab]`` float64.

    In a mixture each source counts by its weight.
    """
    sets = pieces.store.sets("train")
    _, weights = config_lib.sources(pieces.config)
    if weights is None:
        return sum(np.asarray(s.vocab_counts, np.float64) for s in sets)
    tokens, whole = sum(s.tokens_total for s in sets), sum(weights.values())
    return sum(
        s.vocab_counts * (weights[s.name] / whole * tokens / s.tokens_total)
        for s in sets
        if s.tokens_total
    )


def abstract_batch(pieces: Pieces) -> Batch:
    """Shapes and placement of a step's batch."""
    rows, length = pieces.config.data.batch_size, pieces.config.data.length
    placed = pieces.placement.batch
    flat = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=placed)
    wide = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=placed)
    return Batch(wide, wide, wide, flat, flat, flat)


def abstract_seed(pieces: Pieces) -> jax.ShapeDtypeStruct:
    """Shape and placement of a run's seed."""
    return jax.ShapeDtypeStruct((), jnp.uint32, sharding=pieces.placement.whole)


def placed_seed(pieces: Pieces) -> jax.Array:
    """The run's seed, on the devices."""
    return jax.device_put(np.uint32(pieces.config.seed), pieces.placement.whole)


def traced_step(pieces: Pieces) -> jax.stages.Traced:
    """The step that trains, traced for the shapes and the placement of the pieces.

    Returns:
        What `lower` and `compile` make a function of state, batch and seed of; see
        `step.train_step`.
    """
    config = pieces.config
    step = jit_train_step(
        pieces.objective,
        pieces.optimizer,
        pieces.abstract,
        pieces.placement,
        total_steps=config.train.steps,
        microbatches=config.train.microbatches,
        largest_grad_norm=config.guard.largest_grad_norm,
    )
    return step.trace(pieces.abstract, abstract_batch(pieces), abstract_seed(pieces))


def identity(pieces: Pieces) -> dict[str, str]:
    """SHA-256 of what a run must find unchanged when it goes on."""
    return {
        "tokenizer": pieces.store.tokenizer.sha256,
        "token store": pieces.store.manifest["sha256"],
    }


def model_of(pieces: Pieces, params: dict) -> Model:
    """What downstream tasks measure."""
    tokenizer, length = pieces.store.tokenizer, pieces.config.data.length
    return Model(pieces.objective, params, tokenizer, length, pieces.placement.whole)


class Evaluator:
    """The held-out loss of the config's objective on one split of its store.

    Args:
        pieces: of the run.
        split: "validation" or "test"; or "train", to see the gap.
        source: one of the sources of a mixture; "" for all.

    Raises:
        UserError: the split is empty.
    """

    def __init__(self, pieces: Pieces, split: str, source: str = ""):
        held_out_rows(pieces, split, source)
        self._step = jit_eval_step(pieces.objective, pieces.abstract.params, pieces.placement)
        self._counts = training_counts(pieces)
        self._pieces, self._split, self._source = pieces, split, source

    def on(self, split: str, source: str = "") -> "Evaluator":
        """The same, compiled once for both, on another split or source."""
        held_out_rows(self._pieces, split, source)
        other = copy.copy(self)
        other._split, other._source = split, source
        return other

    def __call__(
        self,
        params: dict,
        limit: int = 0,
        *,
        by_batch: list | None = None,
        give_up: Callable[[], bool] = lambda: False,
    ) -> HeldOut | None:
        """Evaluates parameters on all rows, or on so many batches of rows spread over them.

        The corruption is the same at every call.

        Args:
            params: the parameters.
            limit: batches; 0 for all.
            by_batch: see `heldout.held_out`.
            give_up: asked before each batch; if it says so, there is no result.
        """
        batches = held_out_batches(self._pieces, self._split, limit, self._source)
        batches = itertools.takewhile(lambda _: not give_up(), batches)
        first = list(itertools.islice(batches, 1))
        if not first:
            return None
        found = held_out(
            self._step,
            params,
            itertools.chain(first, batches),
            self._pieces.objective,
            self._counts,
            by_batch,
        )
        return None if give_up() else found
