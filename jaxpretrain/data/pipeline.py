"""From step numbers to batches on the devices.

The one idea: the batch of a step is a pure function of the step, so the loaders only map that
function over step numbers, ahead of use. ``tf`` does it with tf.data, ``threads`` with a thread
pool and without TensorFlow, and their batches are the same. There is no iterator state to save: a
run resumes by asking for a later ``start_step``.
"""

import importlib.util
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxpretrain.data.order import Order, permute
from jaxpretrain.data.rows import DocumentRows, PackedRows
from jaxpretrain.data.tensorflow_quietly import import_tensorflow
from jaxpretrain.errors import UserError
from jaxpretrain.types import Batch

if TYPE_CHECKING:
    import jax

Loader = Literal["auto", "tf", "threads"]
_WORKERS = 2
_AHEAD = 4  # batches read before they are asked for


def train_batches(
    rows: PackedRows | DocumentRows,
    order: Order,
    *,
    batch_size: int,
    start_step: int,
    stop_step: int,
    pad_id: int,
    share: np.ndarray | None = None,
    loader: Loader = "auto",
) -> Iterator[Batch]:
    """Reads the batches of steps start_step … stop_step - 1.

    Step s reads positions [s * batch_size, (s + 1) * batch_size) of the order's stream, whatever
    the number of processes; each of them reads its share.

    Args:
        rows: the view to read.
        order: which rows come when; made for `rows.rows_per_set`.
        batch_size: rows of a global batch.
        start_step: the first step.
        stop_step: the step to stop before.
        pad_id: the token that fills short rows.
        share: which rows of each batch to read, as `rows_here` gives them; None means all.
        loader: "tf" (tf.data), "threads" (no TensorFlow needed), or "auto" ("tf" if TensorFlow is
            installed).

    Returns:
        An iterator of batches of as many rows as there are in the share. It reads a few batches
        ahead in threads, which end when it is closed, collected or exhausted.

    Raises:
        UserError: loader is unknown, or TensorFlow is asked for and missing. What reading raises,
            the iterator raises, unchanged.
    """
    here = _share(batch_size, share)

    def read(step: int) -> Batch:
        set_index, epoch, row = order.locate(step * batch_size + here)
        return rows.read(set_index, row, epoch, pad_id=pad_id)

    return _load(read, range(start_step, stop_step), loader)


def eval_batches(
    rows: PackedRows | DocumentRows,
    *,
    batch_size: int,
    pad_id: int,
    share: np.ndarray | None = None,
    loader: Loader = "auto",
    limit: int = 0,
    scattered: bool = False,
) -> Iterator[Batch]:
    """Reads every row once, set after set, in stored order.

    The last batch is filled up with rows of padding (row id -1, segments 0), so that every process
    gets as many batches of the same shape.

    Args: as for `train_batches`, and
        limit: read only so many batches, of rows spread evenly over all; 0 reads all.
        scattered: read in a fixed random order instead, so that neighbouring windows of one
            document are not in one batch, for what compares the rows of a batch.

    Raises:
        UserError: as for `train_batches`, or there are no rows.
    """
    here = _share(batch_size, share)
    if rows.rows_total == 0:
        raise UserError(f"there are no rows to read in {', '.join(rows.names) or 'no sets'}")

    chosen = rows.rows_total if not limit else min(rows.rows_total, limit * batch_size)

    def read(step: int) -> Batch:
        place = step * batch_size + here
        row_id = np.minimum(place, chosen - 1)
        if scattered:
            row_id = permute(row_id, rows.rows_total, 0)
        else:
            row_id = row_id * rows.rows_total // chosen
        set_index, row = rows.find(row_id)
        return rows.read(set_index, np.where(place < chosen, row, -1), pad_id=pad_id)

    return _load(read, range(-(-chosen // batch_size)), loader)


def to_device(
    batches: Iterator[Batch],
    sharding: "jax.sharding.NamedSharding",
    batch_size: int,
    depth: int = 2,
) -> Iterator[Batch]:
    """Puts the shares of all processes together as global arrays, ahead of use.

    Args:
        batches: this process's shares of the batches, as `rows_here` says; any pytree of arrays
            whose first axis is the batch. It is closed with the iterator that is returned.
        sharding: how the batch axis is divided. Arrays with fewer axes than its spec take the
            spec's beginning.
        batch_size: rows of a global batch.
        depth: how many batches are on the devices, or on their way, beyond the one in use.

    Returns:
        An iterator of the same pytrees, of global `jax.Array`s.
    """
    import jax

    here = rows_here(sharding, batch_size)

    def put(array: np.ndarray) -> "jax.Array":
        spec = jax.sharding.PartitionSpec(*sharding.spec[: array.ndim])
        placed = jax.sharding.NamedSharding(sharding.mesh, spec, memory_kind=sharding.memory_kind)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, stop, _ = index[0].indices(batch_size)  # neighbours, so they are neighbours here
            begin = np.searchsorted(here, first)
            return array[(slice(begin, begin + stop - first), *index[1:])]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), placed, part)

    ahead = deque()
    try:
        for batch in batches:
            ahead.append(jax.tree.map(put, batch))
            if len(ahead) > depth:
                yield ahead.popleft()
        yield from ahead
    finally:
        if hasattr(batches, "close"):
            batches.close()


def rows_here(sharding: "jax.sharding.NamedSharding", batch_size: int) -> np.ndarray:
    """Which rows of a global batch the devices of this process hold: int64, ascending.

    Two processes hold the same rows where a mesh axis that does not divide them crosses processes.
    """
    import jax

    spec = jax.sharding.PartitionSpec(*sharding.spec[:1])
    rows = jax.sharding.NamedSharding(sharding.mesh, spec)
    parts = rows.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in parts]))


def _share(batch_size: int, share: np.ndarray | None) -> np.ndarray:
    if batch_size < 1:
        raise UserError(f"a batch of {batch_size} rows: it must have at least 1")
    return np.arange(batch_size) if share is None else np.asarray(share, np.int64)


def _load(read: Callable[[int], Batch], steps: range, loader: str) -> Iterator[Batch]:
    if loader == "auto":
        loader = "tf" if importlib.util.find_spec("tensorflow") else "threads"
    if loader == "threads":
        return _load_with_threads(read, steps)
    if loader != "tf":
        raise UserError(f"there is no loader {loader!r}: use auto, tf or threads")
    try:
        tf = import_tensorflow()
    except ImportError as error:
        raise UserError(
            f"loader 'tf' cannot import TensorFlow ({error}): pip install 'jaxpretrain[tfds]', "
            "or use loader 'threads', which gives the same batches"
        ) from error
    return _load_with_tf(tf, read, steps)


def _load_with_threads(read: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
    pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="jaxpretrain-read")
    try:
        ahead = deque()
        for step in steps:
            ahead.append(pool.submit(read, step))
            if len(ahead) > _AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        # Without waiting: the collector may run this in one of the pool's own threads.
        pool.shutdown(wait=False, cancel_futures=True)


def _load_with_tf(tf, read: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
    failures: dict[int, BaseException] = {}

    def read_step(step: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            return tuple(read(int(step)))
        except BaseException as error:
            failures[int(step)] = error
            raise

    def map_step(step):
        return tf.numpy_function(read_step, [step], [tf.int32] * len(Batch._fields))

    dataset = tf.data.Dataset.range(steps.start, steps.stop)
    # Nothing here is to be tuned, and the end of an iterator waits for the tuner's thread, which
    # sleeps longer and longer: 28 s after a minute of reading.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    dataset = dataset.map(map_step, num_parallel_calls=_WORKERS, deterministic=True)
    arrays = dataset.prefetch(_AHEAD).as_numpy_iterator()
    for step in steps:
        try:
            batch = Batch(*next(arrays))
        except tf.errors.OpError:
            if step in failures:  # what was raised, rather than TensorFlow's account of it
                raise failures[step] from None
            raise
        yield batch
