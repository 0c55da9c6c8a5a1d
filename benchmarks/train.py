"""Training steps of jaxpretrain beside those of PyTorch `transformers`, on one machine in one run.

    pip install '.[bench]'
    python -m benchmarks.train --config=benchmarks/configs.py:mlm --against=transformers

Both sides have the same model, weights, batch, precision, optimizer and clipping; before anything
is timed, the number of parameters and the loss must be the same. Each side is a process of its own,
and they take turns, A B C A B C and so on, a few steps each, all others waiting; the first steps of
a turn are not timed. The peer runs as people run it ("eager"), with `torch.compile` ("compile"),
and, where a part of the positions is predicted, also with our trick of showing the vocabulary head
only those ("slots"). It uses SDPA attention and the fused AdamW; on a GPU, bfloat16 autocast.

Our step also corrupts its rows, of which the peer is spared: it gets the batch ready-made.
"""

import argparse
import json
import statistics
import sys
import tempfile
from typing import Any

from benchmarks.workers import Worker

# Largest relative difference between the two sides' losses.
CLOSE = {"float32": 1e-4, "bfloat16": 2e-2}
# Objectives of which the head sees only some positions here.
SLOTTED = ("mlm", "bert", "rtd")
# Steps at the beginning of a turn that are not timed: another side has had the caches and the
# memory in between.
WARM = 2
# A term that depends on a random draw of each side.
DRAWN = ("discriminator_loss",)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Any key of the config can be set, for example --config.data.batch_size=64.",
    )
    parser.add_argument("--config", default="benchmarks/configs.py:mlm", metavar="FILE[:ARG]")
    parser.add_argument("--against", choices=("transformers", "nothing"), default="transformers")
    parser.add_argument(
        "--modes", help="of the peer: eager, compile, eager-slots, compile-slots (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: 7)")
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn (default: 5)")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="another Python that has torch"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        mine = [sys.executable, "-m", "benchmarks.ours", f"--config={options.config}"]
        sides = [Worker([*mine, f"--folder={folder}", *overrides], "jaxpretrain")]
        about = [sides[0].hear()]
        modes = modes_of(folder, options) if options.against == "transformers" else []
        for mode in modes:
            how, _, slots = mode.partition("-")
            command = [options.peer_python, "benchmarks/peer.py", f"--folder={folder}"]
            command += [f"--mode={how}"] + ["--slots"] * bool(slots)
            sides.append(Worker(command, mode))
            about.append(sides[-1].hear())
            check_alike(about[0], about[-1], mode)
        turns: list[list[dict]] = [[] for _ in sides]
        for _ in range(options.rounds):
            for side, answers in zip(sides, turns, strict=True):
                side.ask(steps=WARM)
                answers.append(side.ask(steps=options.steps))
        for side in sides:
            side.end()
    table(options, about, [side.name for side in sides], turns)


def modes_of(folder: str, options: argparse.Namespace) -> list[str]:
    """The peer's settings that are asked for, or that make sense for the objective."""
    if options.modes:
        return options.modes.split(",")
    with open(f"{folder}/model.json") as file:
        objective = json.load(file)["objective"]
    slots = ["eager-slots", "compile-slots"] if objective in SLOTTED else []
    return ["eager", "compile", *slots]


def check_alike(ours: dict[str, Any], peer: dict[str, Any], mode: str) -> None:
    """Ends the program where the two sides do not compute the same thing."""
    if ours["parameters"] != peer["parameters"]:
        raise SystemExit(
            f"error: {ours['parameters']:,} parameters here and {peer['parameters']:,} in {mode}"
        )
    for term, value in ours["losses"].items():
        theirs = peer["losses"][term]
        if term not in DRAWN and abs(theirs / value - 1) > CLOSE[ours["dtype"]]:
            raise SystemExit(f"error: {term} is {value:.6f} here and {theirs:.6f} in {mode}")


def table(options, about: list[dict], names: list[str], turns: list[list[dict]]) -> None:
    """Prints what was measured, and writes it if asked to."""
    ours, tokens = about[0], about[0]["tokens"]
    seconds = [[turn["seconds"] / options.steps for turn in side] for side in turns]
    rows = []
    for name, side, each, turn in zip(names, about, seconds, turns, strict=True):
        median = statistics.median(each)
        pairs = [theirs / mine for mine, theirs in zip(seconds[0], each, strict=True)]
        rows.append(
            {
                "side": name,
                "tokens_per_second": tokens / median,
                "milliseconds": 1e3 * median,
                "utilisation": ours["peak_flops"] and ours["flops"] / median / ours["peak_flops"],
                "peak_bytes": max(t["peak_bytes"] for t in turn),
                "first_step_seconds": side["compile_seconds"],
                "ratio": statistics.median(pairs),
                "lowest_ratio": min(pairs),
                "highest_ratio": max(pairs),
            }
        )
    versions = ", ".join(dict.fromkeys(side["version"] for side in about))
    print(
        f"{options.config}: {ours['parameters']:,} parameters, {tokens:,} tokens a step, "
        f"{ours['dtype']}, {ours['device']} ({versions}); medians of {options.rounds} turns of "
        f"{options.steps} steps\n"
    )
    print("| side | tokens/s | ms a step | MFU | peak memory | first step | ours is faster by |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        mfu = f"{row['utilisation']:.1%}" if row["utilisation"] else "-"
        spread = f"{row['ratio']:.2f} ({row['lowest_ratio']:.2f} to {row['highest_ratio']:.2f})"
        print(
            f"| {row['side']} | {row['tokens_per_second']:,.0f} | {row['milliseconds']:,.1f} | "
            f"{mfu} | {row['peak_bytes'] / 1e6:,.0f} MB | {row['first_step_seconds']:.1f} s | "
            f"{'' if row is rows[0] else spread} |"
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"config": options.config, "sides": rows} | ours, file, indent=1)


if __name__ == "__main__":
    main()
