"""Told to stop: by SIGTERM, in the time that is given."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxpretrain.preemption import PREEMPTED, preemptible, preemption
from jaxpretrain.train import train
from support import tiny_run

LATE = """
import os, signal, time
from jaxpretrain.preemption import preemption
with preemption(0.5):
    print("ready", flush=True)
    time.sleep(60)  # a save that takes too long
"""


def test_a_run_that_cannot_save_in_time_is_gone_in_time():
    process = subprocess.Popen(
        [sys.executable, "-c", LATE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert 0.3 < time.monotonic() - began < 5
    assert process.returncode == PREEMPTED
    assert "could not save within checkpoint.grace_seconds = 0.5" in errors


def test_outside_of_it_sigterm_is_what_it_was_before():
    before, threads = signal.getsignal(signal.SIGTERM), set(threading.enumerate())
    with preemption(60) as told:
        assert not told.at(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.at(2) and told.is_urgent
    assert signal.getsignal(signal.SIGTERM) is before
    assert set(threading.enumerate()) <= threads  # no timer is left


def test_an_evaluation_is_given_up_when_the_run_is_told_to_stop(tiny_config_file, tmp_path, capfd):
    """The signal comes while the first batch is evaluated; the run saves and is gone."""
    from jaxpretrain import train as module

    class Told(module.Evaluator):
        def __call__(self, params, limit=0, *, give_up):
            os.kill(os.getpid(), signal.SIGTERM)
            assert give_up()
            return super().__call__(params, limit, give_up=give_up)

    config = tiny_run.config(tiny_config_file, evaluate__every=3, checkpoint__every=0)
    before, module.Evaluator = module.Evaluator, Told
    try:
        train(config, tmp_path)
    except SystemExit as stop:
        assert stop.code == PREEMPTED
    else:
        raise AssertionError("the run went on")
    finally:
        module.Evaluator = before
    assert "preempted: stopped by SIGTERM after step 4, saved" in capfd.readouterr().out
    assert (tmp_path / "checkpoints" / "4").is_dir()


def test_what_can_be_done_again_ends_as_preempted():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, preemptible():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert ended.value.code == PREEMPTED
    assert signal.getsignal(signal.SIGTERM) is before
