"""Checkpoints that are damaged, cannot be written, or are wanted by two runs at once."""

import functools
import gc
import os
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.checkpoint import Checkpoints, Damaged
from jaxpretrain.errors import UserError
from jaxpretrain.sharding import Placement, make_mesh
from jaxpretrain.state import TrainState, fingerprint
from jaxpretrain.workdir import sole_use
from support import killing

PLACEMENT = Placement(make_mesh(fsdp=8))
AXES = {"kernel": ("width", "mlp"), "bias": ("mlp",), "low": ("width", "mlp")}


@functools.cache
def state_at(step, placement=PLACEMENT, width=32):
    """A state of random numbers, of several types, on a mesh."""

    def make():
        keys = jax.random.split(jax.random.key(step), 4)
        params = {
            "kernel": jax.random.normal(keys[0], (width, 64)),
            "bias": jax.random.normal(keys[1], (64,)),
            "low": jax.random.normal(keys[2], (width, 64)).astype(jnp.bfloat16),
        }
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero + step, params, {"count": zero + 7}, {"a": jnp.ones(())}, zero)

    shapes = jax.eval_shape(make)
    shardings = jax.tree.map(lambda _: placement.whole, shapes)._replace(
        params=placement.parameters(AXES, shapes.params)
    )
    return jax.jit(make, out_shardings=shardings)()


def abstract():
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_at(1)
    )


def assert_same_bits(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


@pytest.fixture(scope="module")
def _saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, PLACEMENT, keep_latest=2)
    for step in (1, 2):
        checkpoints.save(state_at(step))
    checkpoints.close()
    return folder


@pytest.fixture
def folder(_saved, tmp_path):
    """Checkpoints of steps 1 and 2, the test's own."""
    return shutil.copytree(_saved, tmp_path / "checkpoints")


def test_a_fingerprint_is_that_of_the_bits_on_any_mesh():
    state = state_at(3)
    found = {path: int(value) for path, value in jax.jit(fingerprint)(state).items()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        x = np.asarray(leaf)
        bits = x.reshape(-1).view(f"u{x.dtype.itemsize}").astype(np.uint64)
        place = np.arange(bits.size, dtype=np.uint64)
        expected = int(np.sum(bits * (2 * place + 1), dtype=np.uint64) % 2**32)
        assert found[jax.tree_util.keystr(path)] == expected, path
    assert len(found) == 7
    other = state_at(3, Placement(make_mesh(data=2, fsdp=2, tensor=2)))
    assert_same_bits(state, other)
    assert found == {path: int(value) for path, value in jax.jit(fingerprint)(other).items()}


def test_every_turned_bit_changes_the_fingerprint():
    x = np.random.default_rng(0).standard_normal(40).astype(np.float32)
    bits = np.repeat(x.view(np.uint32)[None], 40 * 32, axis=0)
    places, turned = np.divmod(np.arange(40 * 32), 32)
    bits[np.arange(40 * 32), places] ^= np.uint32(1) << turned.astype(np.uint32)
    sums = jax.jit(jax.vmap(lambda row: fingerprint(row)[""]))(bits.view(np.float32))
    assert not np.any(np.asarray(sums) == np.asarray(fingerprint(x)[""]))


def truncate(file: Path, rng):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path, rng):
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [truncate, flip, lambda file, rng: file.unlink()])
def test_whatever_is_damaged_what_is_restored_is_what_was_saved(folder, harm, capsys):
    """Each file of the newest one in turn: it is named and put aside, or the harm is none."""
    rng, seen = random.Random(0), 0
    whole = folder.parent / "whole"
    shutil.copytree(folder / "2", whole)
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(files) >= 6
    for name in files:
        if not (whole / name).stat().st_size:
            continue
        harm(folder / "2" / name, rng)
        checkpoints = Checkpoints(folder, PLACEMENT, keep_latest=2)
        restored = checkpoints.restore_latest(abstract())
        checkpoints.close()
        said = capsys.readouterr().out
        assert_same_bits(restored, state_at(int(restored.step)))
        if int(restored.step) == 1:
            seen += 1
            assert (
                "checkpoint 2" in said
                and "damaged" in said
                and "going on from checkpoint 1" in said
            )
            assert not (folder / "2").exists()
            shutil.rmtree(folder.parent / "damaged")
        else:
            assert not said
            shutil.rmtree(folder / "2")
        shutil.copytree(whole, folder / "2")
    assert seen >= 2


def test_damage_that_only_the_fingerprint_can_see(folder, monkeypatch):
    """As of a memory or a disk that turned a bit before the file's own checksum was made."""
    checkpoints = Checkpoints(folder, PLACEMENT, keep_latest=2)
    good = state_at(2)
    turned = good.params["bias"].at[5].set(jnp.nextafter(good.params["bias"][5], jnp.inf))
    bad = good._replace(params=good.params | {"bias": turned})
    read = checkpoints._read
    monkeypatch.setattr(checkpoints, "_read", lambda *asked: (bad, read(*asked)[1]))
    with pytest.raises(Damaged, match=r"checkpoint 2 .*\.params\['bias'\] is not what was saved"):
        checkpoints.restore(2, abstract())
    checkpoints.close()


@pytest.mark.parametrize("what", ["d", "ocdbt.process_0/d"])  # their shapes, their numbers
def test_nothing_is_still_being_read_after_a_failure(tmp_path, monkeypatch, caplog, what):
    """What is, prints stack traces when it arrives, or when it is thrown away."""
    one = state_at(1, width=64)  # not so small that they are kept with the shapes
    many = one._replace(opt_state={str(i): one.params["kernel"] for i in range(30)})
    checkpoints = Checkpoints(tmp_path, PLACEMENT)
    checkpoints.save(many)
    checkpoints.wait()
    for file in (tmp_path / "1/default" / what).iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    late = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: late.append(what.exc_value))
    for _ in range(10):
        with pytest.raises(Damaged):
            checkpoints.restore(1, jax.eval_shape(lambda: many))
    checkpoints.close()
    gc.collect()
    assert not late and "Traceback" not in caplog.text


def test_if_all_are_damaged_nothing_is_thrown_away(folder):
    for step in ("1", "2"):
        shutil.rmtree(folder / step / "default")
    checkpoints = Checkpoints(folder, PLACEMENT, keep_latest=2)
    with pytest.raises(UserError, match="checkpoint 1 .* no other that is good"):
        checkpoints.restore_latest(abstract())
    checkpoints.close()
    assert (folder / "1").exists() and (folder / "2").exists()


def test_a_save_that_cannot_be_written_is_an_error_and_no_checkpoint(folder):
    """Files may grow to 20 kB and no further, as on a disk that is full."""
    checkpoints = Checkpoints(folder, PLACEMENT, keep_latest=2)
    big = state_at(3, width=4096)
    jax.block_until_ready(big)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError, match="could not be saved .* from checkpoint 2"):
            checkpoints.save(big)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    after = Checkpoints(folder, PLACEMENT, keep_latest=2)
    assert after.latest() == 2
    assert_same_bits(after.restore_latest(abstract()), state_at(2))
    after.close()


def test_two_runs_cannot_have_one_workdir(tmp_path):
    with sole_use(tmp_path / "run"):
        with pytest.raises(UserError, match="another run is training in .*run .process [0-9]+ on"):
            with sole_use(tmp_path / "run"):
                pass
    with sole_use(tmp_path / "run"):
        pass


def test_a_workdir_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (Path("/proc/jaxpretrain/run"), tmp_path / "file"):
        with pytest.raises(UserError, match=f"cannot write the workdir {workdir}"):
            with sole_use(workdir):
                pass


def test_a_run_that_is_cut_off_in_a_save_ends_with_the_bits_of_one_that_is_not(
    tiny_config_file, tmp_path
):
    """It goes on from what a kill would have left: the files as they were at a moment of the save.

    `python -m support.killing` kills in earnest, at 20 moments of all kinds.
    """
    options = ["--config.train.steps=60", "--config.evaluate.batches=1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run, rng, half = killing.start(tiny_config_file, whole, *options), random.Random(0), False
    while not half:
        killing.moment(whole, rng, ["save"])
        run.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(run.pid, os.WUNTRACED)[1]), Path(f"{whole}.log").read_text()
        half = any((whole / "checkpoints").glob("*tmp*"))
        if half:
            shutil.copytree(whole, parts)
        run.send_signal(signal.SIGCONT)
    runs = run, killing.start(tiny_config_file, parts, *options)
    assert [one.wait() for one in runs] == [0, 0], Path(f"{parts}.log").read_text()
    assert killing.newest(whole) == killing.newest(parts) == 60
    assert killing.final_sums(whole) == killing.final_sums(parts)
