"""Host batches on their way to the devices, in one process and in two."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpretrain.data.order import Order
from jaxpretrain.data.pipeline import to_device, train_batches
from jaxpretrain.data.rows import PackedRows
from jaxpretrain.types import Batch
from support.memory_set import PAD, random_set

ROOT = Path(__file__).parents[2]
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


def train(stop=6):
    rows = PackedRows([random_set("one", 60, 40)], 16)
    order = Order(rows.rows_per_set, None, 11)
    return train_batches(
        rows, order, batch_size=8, start_step=0, stop_step=stop, pad_id=PAD, loader="threads"
    )


needs_8_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (simulated) devices")


@needs_8_devices
@pytest.mark.parametrize(
    ("shape", "spec", "rows_per_device"),
    [
        ((8,), ("data",), 1),
        ((4, 2), ("data",), 2),
        ((4, 2), (("data", "model"),), 1),
        ((4, 2), ("data", "model"), 2),
    ],
)
def test_to_device_shards_the_batch_axis(shape, spec, rows_per_device):
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(shape), ("data", "model")[: len(shape)])
    host = list(train())
    device = list(to_device(train(), NamedSharding(mesh, PartitionSpec(*spec)), 8))
    assert len(device) == len(host)
    for here, there in zip(host, device, strict=True):
        assert type(there) is Batch
        for name in Batch._fields:
            array = getattr(there, name)
            assert isinstance(array, jax.Array) and array.dtype == np.int32
            assert np.array_equal(array, getattr(here, name)), name
            assert {s.data.shape[0] for s in array.addressable_shards} == {rows_per_device}
            assert len(array.sharding.device_set) == 8


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_to_device_keeps_depth_batches_ahead(depth):
    put = []

    def batches():
        for batch in train(stop=20):
            put.append(len(put))
            yield batch

    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))
    device = to_device(batches(), sharding, 8, depth)
    assert put == []
    for step in range(20):
        next(device)
        assert len(put) == min(step + 1 + depth, 20)
    assert next(device, None) is None


def test_closing_to_device_closes_the_reading():
    closed = []

    def batches():
        try:
            yield from train(stop=10**9)
        finally:
            closed.append(True)

    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("data",)), PartitionSpec("data"))
    reading = batches()  # held here too, so that only closing ends it
    device = to_device(reading, sharding, 8)
    next(device)
    assert not closed
    device.close()
    assert closed


PROCESS = """
import sys
import jax
import numpy as np
index, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxpretrain.data.order import Order
from jaxpretrain.data.pipeline import rows_here, to_device, train_batches
from jaxpretrain.data.rows import PackedRows
from support.memory_set import random_set

rows = PackedRows([random_set("one", 60, 40)], 16)


def train(**options):
    order = Order(rows.rows_per_set, None, 11)
    return train_batches(
        rows, order, batch_size=8, start_step=0, stop_step=6, pad_id=0, loader="threads", **options
    )


devices = np.array(jax.devices())
assert devices.size == 4 and len(jax.local_devices()) == 2
half = list(range(4 * index, 4 * index + 4))
whole = list(train())
for mesh, held in (
    (Mesh(devices, ("data",)), half),
    (Mesh(devices.reshape(2, 2), ("data", "tensor")), half),
    (Mesh(devices.reshape(2, 2).T, ("data", "tensor")), list(range(8))),  # both hold all rows
    (Mesh(devices[[0, 2, 1, 3]], ("data",)), [2 * index + row for row in (0, 1, 4, 5)]),
):
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    share = rows_here(sharding, 8)
    assert share.tolist() == held, (share, held)
    device = list(to_device(train(share=share), sharding, 8))
    assert len(device) == len(whole) == 6
    for there, here in zip(device, whole):
        for array, expected in zip(there, here):
            assert array.shape == expected.shape
            assert len(array.addressable_shards) == 2
            for shard in array.addressable_shards:
                assert np.array_equal(shard.data, expected[shard.index])
print("same")
"""


def test_two_processes_hold_the_rows_of_their_devices():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "PYTHONPATH": PYTHONPATH,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(index), port],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for out, errors in outputs:
        assert out == "same\n", errors
