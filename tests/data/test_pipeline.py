"""Both loaders, process slices, resuming and endings."""

import gc
import importlib.util
import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.data import pipeline
from jaxpretrain.data.order import Order
from jaxpretrain.data.pipeline import eval_batches, train_batches
from jaxpretrain.data.rows import DocumentRows, PackedRows
from jaxpretrain.errors import UserError
from jaxpretrain.types import Batch
from support.memory_set import PAD, random_set

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
needs_tf = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)
LOADERS = [pytest.param("tf", marks=needs_tf), "threads"]


def make_rows(view=PackedRows, length=16):
    return view([random_set("one", 60, 40), random_set("two", 34, 60, seed=3)], length)


def make_order(rows, weights=None):
    return Order(rows.rows_per_set, weights, 11, names=rows.names)


def train(rows=None, order=None, start=0, stop=6, **kwargs):
    rows = rows or make_rows()
    kwargs = {"batch_size": 8, "loader": "threads", "pad_id": PAD, **kwargs}
    order = order or make_order(rows)
    return train_batches(rows, order, start_step=start, stop_step=stop, **kwargs)


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert type(a) is type(b) is Batch
        for name in Batch._fields:
            left, right = getattr(a, name), getattr(b, name)
            assert left.dtype == right.dtype == np.int32, name
            assert np.array_equal(left, right), name


def reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("jaxpretrain-read")]


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("view", [PackedRows, DocumentRows])
@pytest.mark.parametrize("weights", [None, [1, 3]])
def test_a_step_reads_its_positions_of_the_order(loader, view, weights):
    rows = make_rows(view)
    order = make_order(rows, weights)
    batches = list(train(rows, order, 3, 30, loader=loader))
    assert len(batches) == 27
    set_index, epoch, row = order.locate(np.arange(3 * 8, 30 * 8))
    assert np.array_equal(np.concatenate([b.epochs for b in batches]), epoch)
    ids = row + np.array([0, rows.rows_per_set[0]])[set_index]
    assert np.array_equal(np.concatenate([b.row_ids for b in batches]), ids)
    # An epoch's end lies in these steps, and the tokens are those of the rows named.
    assert epoch.max() > 0
    stored = list(eval_batches(rows, batch_size=rows.rows_total, pad_id=PAD, loader="threads"))[0]
    assert np.array_equal(np.concatenate([b.tokens for b in batches]), stored.tokens[ids])
    assert np.array_equal(np.concatenate([b.segments for b in batches]), stored.segments[ids])
    assert np.array_equal(np.concatenate([b.positions for b in batches]), stored.positions[ids])


@needs_tf
@pytest.mark.parametrize("view", [PackedRows, DocumentRows])
def test_both_loaders_give_identical_batches(view):
    rows = make_rows(view)
    for options in ({}, {"share": np.arange(4, 8)}):
        assert_same(train(rows, loader="tf", **options), train(rows, loader="threads", **options))
        assert_same(
            eval_batches(rows, batch_size=8, pad_id=PAD, loader="tf", **options),
            eval_batches(rows, batch_size=8, pad_id=PAD, loader="threads", **options),
        )


@pytest.mark.parametrize("loader", LOADERS)
def test_a_resumed_run_reads_the_very_same_batches(loader):
    whole = list(train(stop=20, loader=loader))
    for start in (1, 7, 19, 20):
        assert_same(train(start=start, stop=20, loader=loader), whole[start:])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_shares_of_the_processes_are_the_global_batch(loader, processes):
    rows = make_rows()

    def joined(read):
        parts = zip(*[read(index) for index in range(processes)], strict=True)
        return [Batch(*map(np.concatenate, zip(*part, strict=True))) for part in parts]

    shares = np.split(np.arange(8), processes)

    def slices(index):
        return train(rows, loader=loader, share=shares[index])

    def eval_slices(index):
        return eval_batches(rows, batch_size=8, pad_id=PAD, loader=loader, share=shares[index])

    assert_same(joined(slices), train(rows))
    assert_same(joined(eval_slices), eval_batches(rows, batch_size=8, pad_id=PAD, loader=loader))
    assert next(slices(0)).tokens.shape == (8 // processes, 16)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 1000])
def test_eval_reads_every_row_once_in_stored_order(batch_size):
    rows = make_rows()
    assert rows.rows_total % 8  # so that there is a last batch to fill
    batches = list(eval_batches(rows, batch_size=batch_size, pad_id=9, loader="threads"))
    assert {b.tokens.shape for b in batches} == {(batch_size, 16)}
    ids = np.concatenate([b.row_ids for b in batches])
    filling = len(ids) - rows.rows_total
    assert 0 <= filling < batch_size
    assert ids.tolist() == [*range(rows.rows_total), *[-1] * filling]
    if filling:
        assert (batches[-1].segments[-filling:] == 0).all()
        assert (batches[-1].tokens[-filling:] == 9).all()
    tokens = np.concatenate([b.tokens[b.segments > 0] for b in batches])
    stream = np.concatenate([token_set.tokens for token_set in rows.token_sets])
    assert np.array_equal(tokens, stream)


@pytest.mark.parametrize("limit", [1, 3])
def test_a_limit_reads_rows_spread_over_all_sets(limit):
    rows = make_rows(length=4)
    options = {"batch_size": 8, "pad_id": PAD, "loader": "threads"}
    every = np.concatenate([b.row_ids for b in eval_batches(rows, **options)])
    ids = np.concatenate([b.row_ids for b in eval_batches(rows, limit=limit, **options)])
    total = rows.rows_total
    assert len(ids) == 8 * limit < total
    steps = np.diff(ids)
    assert ids[0] == 0 and steps.min() >= total // len(ids) and steps.max() <= total // len(ids) + 1
    everything = np.concatenate([b.row_ids for b in eval_batches(rows, limit=10**6, **options)])
    np.testing.assert_array_equal(everything, every)


def test_eval_without_rows_is_an_error():
    rows = DocumentRows([random_set("none", 3, 0)], 8)
    with pytest.raises(UserError, match="no rows to read in none"):
        eval_batches(rows, batch_size=8, pad_id=PAD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch of 0 rows"),
        ({"loader": "tfdata"}, "no loader 'tfdata'"),
    ],
)
def test_what_cannot_be_read_is_said_at_once(options, message):
    with pytest.raises(UserError, match=message):
        train(**options)
    options = {"batch_size": 8, **options}
    with pytest.raises(UserError, match=message):
        eval_batches(make_rows(), pad_id=PAD, **options)


class Damaged(PackedRows):
    """Fails at a certain row."""

    def read(self, set_index, row, epoch=None, *, pad_id):
        if 3 in row[set_index == 0]:
            raise self.error
        return super().read(set_index, row, epoch, pad_id=pad_id)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", [UserError, KeyError, OSError])
def test_what_reading_raises_is_raised_at_its_step_unchanged(loader, kind):
    rows = Damaged([random_set("one", 60, 40)], 16)
    rows.error = kind("the shard 'wiki/0.tokens' is damaged")
    order = make_order(rows)
    _, _, row = order.locate(np.arange(rows.rows_total))
    bad_step = int(np.flatnonzero(row == 3)[0]) // 8
    batches = train(rows, order, 0, bad_step + 20, loader=loader)
    assert len(list(itertools.islice(batches, bad_step))) == bad_step
    with pytest.raises(kind) as error:
        next(batches)
    assert error.value is rows.error
    assert wait_until(lambda: not reading_threads())


class Counting(PackedRows):
    reads = 0

    def read(self, *args, **kwargs):
        self.reads += 1
        return super().read(*args, **kwargs)


@pytest.mark.parametrize("loader", LOADERS)
def test_reading_ahead_is_bounded(loader):
    rows = Counting([random_set("one", 60, 40)], 16)
    batches = train(rows, stop=10**9, loader=loader)
    assert rows.reads == 0
    next(batches)
    assert wait_until(lambda: rows.reads > 1)
    time.sleep(0.3)
    assert rows.reads <= 1 + pipeline._AHEAD + pipeline._WORKERS
    batches.close()


@pytest.mark.parametrize("end", ["close", "collect", "exhaust"])
def test_the_threads_stop_with_the_iterator(end):
    assert wait_until(lambda: not reading_threads())
    batches = train(stop=3 if end == "exhaust" else 10**9)
    next(batches)
    assert reading_threads()
    if end == "close":
        batches.close()
    elif end == "exhaust":
        assert len(list(batches)) == 2
    else:
        del batches
        gc.collect()
    assert wait_until(lambda: not reading_threads())


def test_an_iterator_not_started_has_no_threads():
    assert wait_until(lambda: not reading_threads())
    batches = train(stop=10**9)
    assert not reading_threads()
    del batches


@pytest.mark.parametrize("there", [True, False])
def test_auto_takes_tf_where_it_is_installed(monkeypatch, there):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (there or None) if name == "tensorflow" else find_spec(name),
    )
    asked = []
    if not there:
        assert len(list(train(loader="auto"))) == 6
        return
    monkeypatch.setattr(pipeline, "_load_with_tf", lambda tf, read, steps: asked.append(steps))
    monkeypatch.setattr(pipeline, "import_tensorflow", object)
    train(loader="auto", start=2, stop=5)
    assert asked == [range(2, 5)]


@needs_tf
@pytest.mark.parametrize("started", [False, True])
def test_tensorflow_leaves_the_gpus_alone(monkeypatch, started):
    import tensorflow as tf

    asked = []

    def set_visible_devices(*args):
        asked.append(args)
        if started:
            raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", set_visible_devices)
    assert len(list(train(loader="tf"))) == 6
    assert asked == [([], "GPU")]


@needs_tf
def test_tf_data_is_not_tuned(monkeypatch):
    """Its tuner made the end of an iterator wait for half a minute after a minute of reading."""
    import tensorflow as tf

    seen = []
    real = tf.data.Dataset.with_options

    def with_options(self, options, name=None):
        seen.append(options.autotune.enabled)
        return real(self, options, name)

    monkeypatch.setattr(tf.data.Dataset, "with_options", with_options)
    assert len(list(train(loader="tf"))) == 6
    assert seen == [False]


def test_asking_for_a_missing_tensorflow_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"pip install 'jaxpretrain\[tfds\]'"):
        train(loader="tf")


def test_reading_needs_neither_jax_nor_tensorflow():
    code = textwrap.dedent("""
        import sys
        sys.modules["tensorflow"] = sys.modules["jax"] = None
        from jaxpretrain.data.order import Order
        from jaxpretrain.data.pipeline import train_batches
        from jaxpretrain.data.rows import PackedRows
        from support.memory_set import random_set
        rows = PackedRows([random_set("one", 60, 40)], 16)
        order = Order(rows.rows_per_set, None, 11)
        batches = train_batches(rows, order, batch_size=8, start_step=0, stop_step=3, pad_id=0,
                                loader="threads")
        print(len(list(batches)))
    """)
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == "3\n"
