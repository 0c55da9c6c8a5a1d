"""The command line: ``jaxpretrain COMMAND --config=FILE [--config.KEY=VALUE …]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from jaxpretrain import __version__, compile_cache, huge_pages
from jaxpretrain.errors import UserError
from jaxpretrain.storage import AnyPath, path_of


def program() -> int:
    """The program ``jaxpretrain``: `main`, in a process that has asked for large pages."""
    huge_pages.ask()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit status: 0, or 2 after an error that the user can mend. (A run that was preempted
        raises SystemExit with 75.)
    """
    status = 2
    try:
        return run(sys.argv[1:] if arguments is None else list(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from what was saved last", file=sys.stderr)
        status = 130
    except RuntimeError as error:  # JAX's errors are RuntimeErrors
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).split("RESOURCE_EXHAUSTED: ")[-1].splitlines()[0]
        print(
            f"error: {reason.rstrip('.')}: lower data.batch_size or data.length, raise "
            "train.microbatches, or set model.remat=full",
            file=sys.stderr,
        )
    if "jax" in sys.modules:
        from jaxpretrain.processes import end

        end(status)
    return status


def run(arguments: list[str]) -> int:
    """Parses and dispatches; raises UserError for what the user can mend."""
    arguments, overrides = take_overrides(arguments)
    options = parser().parse_args(arguments)
    quiet_libraries()
    compile_cache.ask()
    if options.command in ("train", "evaluate", "ablate"):
        from jaxpretrain.processes import join

        join(
            distributed=options.distributed,
            coordinator=options.coordinator,
            processes=options.processes,
            process=options.process,
            heartbeat_seconds=options.heartbeat,
        )
    if options.command == "replay":
        from jaxpretrain.replay import replay

        replay(path_of(options.workdir), step=options.step, passed_over=options.passed_over)
        return 0
    if options.command == "score":
        if bool(options.workdir) == bool(options.model):
            raise UserError("score needs a --workdir of a run, or a --model, and not both")
        if options.model:
            from jaxpretrain.pretrained import load

            for line in load(options.model).describe(options.text, top=options.top):
                print(line)
            return 0
        from jaxpretrain.score import score

        workdir, which = path_of(options.workdir), options.checkpoint
        score(workdir, options.text, which=which, top=options.top)
        return 0
    if options.command == "export":
        from jaxpretrain.export import export

        export(path_of(options.workdir), Path(options.out), which=options.checkpoint)
        return 0
    if options.command == "import":
        from jaxpretrain.import_model import import_model

        workdir = path_of(options.workdir)
        generator = Path(options.generator) if options.generator else None
        import_model(
            Path(options.model),
            workdir,
            file=options.config,
            overrides=overrides,
            generator=generator,
        )
        return 0
    if options.command == "evaluate":
        from jaxpretrain.evaluate import evaluate

        workdir = default_workdir(options)
        if options.config and not Path(options.config.partition(":")[0]).is_file():
            raise UserError(f"there is no config file {options.config}")
        evaluate(
            workdir,
            split=options.split,
            which=options.checkpoint,
            overrides=overrides,
            tasks=[name for name in options.tasks.split(",") if name],
            others=[name for name in options.under.split(",") if name],
        )
        return 0

    if options.command == "ablate":
        from jaxpretrain import ablate, ablation

        found = ablation.load(options.config, overrides)
        if options.list:
            print("\n".join(cell.name for cell in found.cells))
        elif options.prepare:
            ablate.prepare_stores(found.cells)
        else:
            workdir = path_of(options.workdir or Path("runs/ablations") / found.name)
            ablate.ablate(found, workdir, only=options.cell)
        return 0

    from jaxpretrain.config import load

    config = load(options.config, overrides)
    if options.command == "prepare":
        from jaxpretrain.assemble import prepare_store

        prepare_store(config, overwrite=options.overwrite)
        return 0

    if options.command == "plan":
        from jaxpretrain.plan import plan

        plan(config, options.topology, slices=options.slices, search=options.search)
        return 0

    from jaxpretrain.processes import is_first
    from jaxpretrain.train import train

    summary = train(config, default_workdir(options), verify=options.verify)
    if not is_first():
        return 0
    held = summary["eval"]
    print(
        f"done: {summary['steps']} steps, {summary['tokens']:,} tokens in "
        f"{summary['train_seconds']:.0f} s ({summary['tokens_per_second']:,.0f} tokens/s); "
        f"validation loss {held['loss']:.4f}"
        + (f", unigram {held['unigram_loss']:.4f}" if held["unigram_loss"] is not None else "")
    )
    return 0


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The options of each command; ``--config.KEY`` is taken out before."""
    top = Parser(
        prog="jaxpretrain",
        description="Pretrain one Transformer under any objective, and see what it learned.",
        epilog="Any key of the config can be set, for example --config.objective.mask_rate=0.3; "
        "config.json in a run's workdir lists them all.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"jaxpretrain {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=top.epilog, allow_abbrev=False
        )
        if name in ("replay", "score", "export"):
            sub.add_argument(
                "--workdir", metavar="DIR", required=name != "score", help="folder of the run"
            )
            return sub
        example = "configs/ablations/mask_rate.py" if name == "ablate" else "configs/mlm.py"
        sub.add_argument(
            "--config",
            required=name not in ("evaluate", "import"),
            metavar="FILE[:ARG]",
            help=f"config file, or a run's config.json, for example {example}"
            + ("; the run's own config is what counts" if name == "evaluate" else ""),
        )
        return sub

    prepare = command("prepare", "Turn a source of text into a tokenizer and a token store.")
    prepare.add_argument(
        "--overwrite", action="store_true", help="replace a store made with other settings"
    )
    train = command("train", "Train, or go on where the workdir's last checkpoint is.")
    train.add_argument(
        "--verify", action="store_true", help="check the token store's checksums first"
    )
    evaluate = command("evaluate", "Measure a run on held-out documents and show examples.")
    evaluate.add_argument(
        "--split", choices=["test", "validation"], default="test", help="default: test"
    )
    evaluate.add_argument(
        "--tasks",
        nargs="?",
        const="all",
        default="",
        metavar="NAMES",
        help="also learn downstream tasks of the config (default of NAMES: all of them)",
    )
    evaluate.add_argument(
        "--under",
        default="",
        metavar="OBJECTIVES",
        help="also the held-out loss under other objectives, such as clm,mlm, or all",
    )
    ablate = command("ablate", "Train and evaluate the cells of an ablation on equal terms.")
    ablate.add_argument(
        "--cell",
        default="",
        metavar="NAME",
        help="one cell, by name or number from 0 (default: all)",
    )
    ablate.add_argument("--list", action="store_true", help="print the names of the cells")
    ablate.add_argument(
        "--prepare", action="store_true", help="prepare the token stores of the cells, and stop"
    )
    plan = command("plan", "Compile the training step for devices that need not be here.")
    plan.add_argument(
        "--topology",
        default="",
        metavar="KIND:SHAPE",
        help="a TPU slice, for example v5e:4x4 or v5p:4x4x4 (default: the devices here)",
    )
    plan.add_argument(
        "--slices", type=int, default=1, metavar="N", help="how many such slices (default: 1)"
    )
    plan.add_argument(
        "--search",
        type=int,
        nargs="?",
        const=8,
        default=0,
        metavar="N",
        help="compile the N most promising meshes and microbatches, and rank them (default: 8)",
    )
    replay = command("replay", "Rebuild the batch of one step and its corruption, to look at.")
    replay.add_argument("--step", type=int, required=True, help="number of the step, from 1")
    replay.add_argument(
        "--passed-over",
        type=int,
        metavar="N",
        help="batches left out before it by rolling back (default: as in the run now)",
    )
    score = command("score", "Ask a run's model about one text, or about two.")
    score.add_argument(
        "text", nargs="+", help="one, with [MASK] where words are missing, or two to compare"
    )
    score.add_argument(
        "--top", type=positive, default=5, metavar="N", help="candidates for a gap (default: 5)"
    )
    score.add_argument(
        "--model", metavar="DIR", help="instead of a run, a Hugging Face folder with its tokenizer"
    )
    export = command("export", "Write a run's model as a folder that transformers loads.")
    export.add_argument(
        "--to", choices=["hf"], default="hf", help="Hugging Face safetensors (the default)"
    )
    export.add_argument("--out", metavar="DIR", required=True, help="a new folder")
    bring = command("import", "Make a run of a Hugging Face model, to train on and to measure.")
    bring.add_argument(
        "--model", metavar="DIR", required=True, help="its folder, with safetensors and tokenizer"
    )
    bring.add_argument("--workdir", metavar="DIR", required=True, help="folder of the new run")
    bring.add_argument(
        "--generator", metavar="DIR", help="of ELECTRA; default: DIR/generator, where an export is"
    )
    for sub in (evaluate, score, export):
        sub.add_argument(
            "--checkpoint",
            choices=["best", "latest"],
            default="best",
            help="the best by validation loss (the default), or the latest",
        )
    for sub in (train, evaluate, ablate):
        group = sub.add_argument_group("several processes", "found out under SLURM and Open MPI")
        group.add_argument(
            "--distributed", action="store_true", help="find the others (Cloud TPU, Kubernetes)"
        )
        group.add_argument(
            "--coordinator", default="", metavar="HOST:PORT", help="of the first process"
        )
        group.add_argument("--processes", type=int, metavar="N", help="how many there are")
        group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")
        group.add_argument(
            "--heartbeat",
            type=int,
            default=60,
            metavar="SECONDS",
            help="a process silent for so long is dead, and ends the others (default: 60)",
        )
        sub.add_argument(
            "--workdir",
            metavar="DIR",
            help="folder of the run, here or in gs:// (default: in runs/, by the config's name)",
        )
    return top


def positive(text: str) -> int:
    """A number above 0, as typed."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def take_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Separates ``--config.KEY=VALUE`` and ``--config.KEY VALUE`` from the other arguments."""
    rest, overrides = [], {}
    words = iter(arguments)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise UserError(f"--config.{key} has no value: write --config.{key}=VALUE")
        overrides[key] = value
    return rest, overrides


def default_workdir(options: argparse.Namespace) -> AnyPath:
    """``--workdir``, or ``runs/`` and the config file's name."""
    if options.workdir is not None:
        return path_of(options.workdir)
    if not options.config:
        raise UserError("evaluate needs the --workdir of a run, or its --config")
    file, _, argument = options.config.partition(":")
    name = Path(file).stem
    return Path("runs") / (f"{name}-{argument}" if argument else name)


def quiet_libraries() -> None:
    """Turns down libraries that log what a user cannot act on."""
    import logging

    logging.getLogger("jax").setLevel(logging.ERROR)
    # Orbax logs the tracebacks of what it raises as well, and that is said in one line.
    for name in ("absl", "orbax", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    shown = sys.unraisablehook

    def hook(what) -> None:
        # TensorStore's threads, when one write of several has failed and Orbax has done with them.
        if str(what.exc_value) != "Event loop is closed":
            shown(what)

    sys.unraisablehook = hook


if __name__ == "__main__":
    sys.exit(program())
