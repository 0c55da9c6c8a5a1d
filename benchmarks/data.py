"""From text to batches: tokens and megabytes a second, beside what others take for the same.

    python -m benchmarks.data --files='../shared/data/pretrain/train/*.jsonl.gz'

Prepares the token store of some JSON Lines files with one worker and with one for each core, and
tokenizes the same texts with SentencePiece itself, and, where they are installed, with `tokenizers`
and `datasets` (``pip install '.[bench]'``). Each gets the same texts, all in memory, and the same
pieces, though `tokenizers` cuts the text at spaces its own way first; `prepare` also reads the
files, decides on the split and writes the store, with checksums. Then the pipeline reads random
documents, held in memory, by the step.
"""

import argparse
import glob
import gzip
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from jaxpretrain.data.order import Order
from jaxpretrain.data.pipeline import train_batches
from jaxpretrain.data.prepare import prepare
from jaxpretrain.data.rows import PackedRows
from jaxpretrain.data.sources_files import JsonLines
from jaxpretrain.data.tokenizer import Tokenizer

FAR = 10**9  # a step that is far on


class MadeUpSet:
    """A token set in memory, with documents of some 500 tokens; see `jaxpretrain.data.store`."""

    name = "made up"

    def __init__(self, tokens: int):
        rng = np.random.default_rng(0)
        lengths = rng.geometric(1 / 500, tokens // 500) + 2
        self.doc_ends = np.cumsum(lengths, dtype=np.int64)
        self.tokens_total = int(self.doc_ends[-1])
        self.tokens = rng.integers(24, 16_384, self.tokens_total, dtype=np.uint16)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", help="JSON Lines with a key 'text' (default: only the pipeline)")
    parser.add_argument("--megabytes", type=float, default=20, help="of text (default: 20)")
    parser.add_argument(
        "--characters", type=int, help="cut documents into texts of so many (default: as they are)"
    )
    parser.add_argument("--vocab-size", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="of the pipeline's text")
    parser.add_argument("--rows", type=int, default=256, help="of a batch (default: 256)")
    parser.add_argument("--length", type=int, default=2048, help="of a row (default: 2048)")
    options = parser.parse_args()
    if options.files:
        measure_prepare(options)
    measure_pipeline(options)


def measure_prepare(options: argparse.Namespace) -> None:
    """Megabytes of text a second."""
    texts = list(some_texts(options.files, options.megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = Tokenizer.train(texts[:: max(1, len(texts) // 2000)], vocab_size=options.vocab_size)
    if cut := options.characters:
        texts = [text[at : at + cut] for text in texts for at in range(0, len(text), cut)]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        tokenizer.save(where / "tokenizer.model")
        parts = 8
        for part in range(parts):
            with open(where / f"{part}.jsonl", "w") as file:
                file.writelines(json.dumps({"text": text}) + "\n" for text in texts[part::parts])
        candidates = {
            "SentencePiece, one thread": bare(where / "tokenizer.model", texts),
            "prepare, one worker": prepared(where, workers=1),
            f"prepare, {os.cpu_count()} workers": prepared(where, workers=os.cpu_count()),
            **others(where / "tokenizer.model", texts),
        }
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(options.rounds):
            for name, run in candidates.items():
                began = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - began)
    first = statistics.median(times["SentencePiece, one thread"])
    print(f"{size:.1f} MB of text in {len(texts):,} documents, {options.vocab_size:,} pieces\n")
    print("| | MB/s | against SentencePiece |")
    print("| --- | ---: | ---: |")
    for name, each in times.items():
        median = statistics.median(each)
        print(f"| {name} | {size / median:.2f} | {first / median:.2f} |")
    print()


def some_texts(pattern: str, most: float) -> Iterator[str]:
    """Documents of the files, in turn, until there are enough bytes."""
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise SystemExit(f"error: no file matches {pattern}")
    files = [gzip.open(path, "rt") if path.endswith(".gz") else open(path) for path in paths]
    for line in itertools.chain.from_iterable(zip(*files, strict=False)):
        text = json.loads(line)["text"]
        yield text
        most -= len(text.encode())
        if most <= 0:
            return


def bare(model: Path, texts: list[str]) -> Callable[[], None]:
    """SentencePiece alone, text after text, which is faster than all of them in one call."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def run():
        for text in texts:
            processor.Encode(text)

    return run


def prepared(where: Path, workers: int) -> Callable[[], None]:
    """The command ``prepare``, into a new store each time."""

    def run():
        with tempfile.TemporaryDirectory(dir=where) as folder:
            prepare(
                Path(folder) / "store",
                sources={"files": JsonLines(path=str(where / "*.jsonl"))},
                tokenizer_args={"file": str(where / "tokenizer.model")},
                workers=workers,
                progress=False,
            )

    return run


def others(model: Path, texts: list[str]) -> dict[str, Callable[[], None]]:
    """The same unigram model in `tokenizers`, alone and under `datasets`, where they are there."""
    if not find_spec("tokenizers"):
        return {}
    import sentencepiece
    import tokenizers

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = [(processor.IdToPiece(i), processor.GetScore(i)) for i in range(len(processor))]
    fast = tokenizers.Tokenizer(
        tokenizers.models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=True)
    )
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    found = {"tokenizers, one thread": lambda: fast.encode_batch(texts)}
    if find_spec("datasets"):
        import datasets

        datasets.disable_progress_bars()
        table = datasets.Dataset.from_dict({"text": texts})

        def mapped():
            table.map(
                lambda rows: {"ids": [e.ids for e in fast.encode_batch(rows["text"])]},
                batched=True,
                remove_columns=["text"],
                load_from_cache_file=False,
            )

        found["datasets.map over tokenizers, one process"] = mapped
    return found


def measure_pipeline(options: argparse.Namespace) -> None:
    """Tokens a second, and the time to the first batch."""
    rows = PackedRows([MadeUpSet(options.tokens)], options.length)
    order = Order(rows.rows_per_set, None, seed=0)
    size = options.rows * options.length
    steps = max(4, min(50_000_000, options.tokens) // size)

    def read(step: int):
        set_index, epoch, row = order.locate(step * options.rows + np.arange(options.rows))
        return rows.read(set_index, row, epoch, pad_id=0)

    def alone(start: int) -> Iterator:
        return map(read, range(start, start + steps))

    def loaded(loader: str) -> Callable[[int], Iterator]:
        return lambda start: train_batches(
            rows,
            order,
            batch_size=options.rows,
            start_step=start,
            stop_step=start + steps,
            pad_id=0,
            loader=loader,
        )

    loaders = ["threads"] + (["tf"] if find_spec("tensorflow") else [])
    runs = {"reading, one core": alone} | {f"loader {name}": loaded(name) for name in loaders}
    for run in runs.values():
        next(run(0))  # what is loaded once
    print(f"batches of {options.rows} rows of {options.length} tokens\n")
    print("| | tokens/s | ms a batch | first batch at step 0 | at step 10^9 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, run in runs.items():
        seconds = []
        for _ in range(options.rounds):
            began = time.perf_counter()
            deque(run(0), maxlen=0)
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds)
        first = {}
        for start in (0, FAR):
            each = []
            for _ in range(2 * options.rounds + 1):
                began = time.perf_counter()
                next(run(start))
                each.append(time.perf_counter() - began)
            first[start] = statistics.median(each)
        print(
            f"| {name} | {steps * size / median / 1e6:,.0f} million | {1e3 * median / steps:.1f} "
            f"| {1e3 * first[0]:.1f} ms | {1e3 * first[FAR]:.1f} ms |"
        )


if __name__ == "__main__":
    main()
