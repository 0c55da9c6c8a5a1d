"""What a start costs: importing, tracing and compiling, by depth, the first time and the second.

    python -m benchmarks.compile

Each number is of a fresh process. The second start finds what the first compiled in JAX's
persistent cache, in a folder of this program's own. With `--topology` the step is compiled for TPUs
(``pip install '.[plan]'``), which nobody needs to have.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from jaxpretrain.main import take_overrides

LAYERS = (4, 12, 48)


def main() -> None:
    """Measures and prints; or is one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="benchmarks/configs.py:clm", metavar="FILE[:ARG]")
    parser.add_argument("--topology", help="for example v5p:2x2x1 (default: this machine)")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments, overrides = take_overrides(sys.argv[1:])
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(one(options, overrides)))
        return
    imported = fresh([sys.executable, "-X", "importtime", "-c", IMPORT])
    print(f"import of the package and its train loop: {imported['seconds']:.2f} s")
    print(f"TensorFlow is imported with it: {imported['tensorflow']}\n")
    print("| layers | start | trace | compile, or read from the cache |")
    print("| ---: | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for layers in LAYERS:
            for start in ("first", "second") if not options.topology else ("first",):
                command = [sys.executable, "-m", "benchmarks.compile", f"--one={layers}"]
                command += [f"--config={options.config}"]
                command += [f"--config.{key}={value}" for key, value in overrides.items()]
                command += [f"--topology={options.topology}"] * bool(options.topology)
                found = fresh(command, JAX_COMPILATION_CACHE_DIR=folder)
                print(
                    f"| {layers} | {start} | {found['trace']:.2f} s | {found['compile']:.2f} s |",
                    flush=True,
                )


IMPORT = """
import json, sys, time
began = time.perf_counter()
import jaxpretrain.train
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "tensorflow": "tensorflow" in sys.modules}))
"""


def fresh(command: list[str], **environment: str) -> dict:
    """What a new process prints last, as JSON."""
    quiet = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        command, env=os.environ | quiet | environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def one(options: argparse.Namespace, overrides: dict[str, str]) -> dict:
    """Seconds of tracing and of compiling the training step, in this process."""
    import jax

    from benchmarks.made_up import vocabulary
    from jaxpretrain.assemble import build, traced_step
    from jaxpretrain.config import load
    from jaxpretrain.main import quiet_libraries
    from jaxpretrain.plan import devices_of, for_platform

    quiet_libraries()
    config = load(options.config, overrides | {"model.layers": str(options.one)})
    devices = devices_of(options.topology) if options.topology else None
    config = for_platform(config, devices[0].platform if devices else jax.default_backend())
    vocab = vocabulary(config.tokenizer.vocab_size)
    pieces = build(config, vocab, devices=devices)
    began = time.perf_counter()
    lowered = traced_step(pieces).lower()
    traced = time.perf_counter()
    lowered.compile()
    return {"trace": traced - began, "compile": time.perf_counter() - traced}


if __name__ == "__main__":
    main()
