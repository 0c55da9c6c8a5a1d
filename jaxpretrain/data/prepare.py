"""Makes a token store from sources of text: parallel, atomic, resumable.

The one idea: a store is a pure function of the request (sources, their fingerprints, tokenizer and
split fractions), part by part. So parts are written by any number of workers in any order, each one
whole or not at all, and a `prepare` that was interrupted goes on with the parts that are missing.
"""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpretrain.data.prepare_request import (
    begin,
    check_arguments,
    locked,
    make_request,
    tokenizer_request,
)
from jaxpretrain.data.prepare_workers import Task, write_parts
from jaxpretrain.data.progress import Progress
from jaxpretrain.data.shards import (
    SPLITS,
    finished_record,
    record_path,
    split_of,
    token_dtype,
    write_json,
)
from jaxpretrain.data.sources_base import Part, Source
from jaxpretrain.data.store import FORMAT, MANIFEST, REQUEST, TOKENIZER, Store, manifest_sha256
from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.data.tokenizer_load import load_tokenizer
from jaxpretrain.errors import UserError

_SAMPLED_AT_ONCE = 32


def prepare(
    path: str | os.PathLike,
    *,
    sources: Mapping[str, Source],
    tokenizer_args: Mapping[str, Any] | None = None,
    validation_fraction: float = 0.02,
    test_fraction: float = 0.02,
    workers: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Store:
    """Prepares the token store at `path`, or finishes it, or finds it finished.

    Args:
        path: the store's folder; made if it is not there.
        sources: by the names that the store's folders get.
        tokenizer_args: `vocab_size`, `kind` and `character_coverage` as in `Tokenizer.train`;
            `train_bytes`, how much text of the train split to train on (a fixed sample, spread
            over the parts; default 20 million); or `file`, what `load_tokenizer` reads, to use
            instead of training.
        validation_fraction: of the documents, chosen by a hash of their text.
        test_fraction: likewise.
        workers: processes; 0 is one for each CPU core. The store does not depend on it.
        overwrite: replace a store that was prepared from something else.
        progress: show what is going on, on the standard error.

    Raises:
        UserError: bad input, no documents, a vocabulary that does not fit the text, a store that
            was prepared from something else, or an input that changed since it was begun.
    """
    path = Path(path)
    split = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    check_arguments(sources, workers=workers, **split)
    parts = {name: list(source.parts()) for name, source in sources.items()}
    training, model_file = tokenizer_request(**(tokenizer_args or {}))
    request = make_request(sources, parts, split=split, tokenizer=training)
    with locked(path), Progress(shown=progress) as shown:
        if begin(path, request, overwrite):
            try:
                store = Store.open(path)
                shown.say(f"{path} is already prepared")
                return store
            except UserError as error:
                shown.say(f"{error}; doing so now")
                (path / MANIFEST).unlink(missing_ok=True)
        tokenizer = _tokenizer(path, parts, split, training, model_file, shown)
        records = _records(path, request, parts, split, tokenizer, workers, shown)
        _require_documents(records)
        _write_manifest(path, request, sources, records, tokenizer)
        store = Store.open(path)
        for name, summary in store.manifest["sources"].items():
            shown.say(f"{name}: {_summary(summary)}")
        return store


def _tokenizer(
    path: Path,
    parts: Mapping[str, Sequence[Part]],
    split: dict,
    training: dict,
    model_file: str,
    shown: Progress,
) -> AnyTokenizer:
    """The store's tokenizer: there already, loaded, or trained."""
    target = path / TOKENIZER
    if target.exists():
        try:
            return load_tokenizer(target)
        except UserError:
            shown.say(f"{target} is damaged, making it again")
    if model_file:
        tokenizer = load_tokenizer(model_file)
    else:
        arguments = dict(training)
        shown.say("reading text to train the tokenizer on")
        texts, size = _sample(parts, split, arguments.pop("train_bytes"))
        shown.say(
            f"training the tokenizer ({arguments['kind']}, {arguments['vocab_size']:,} pieces) "
            f"on {size / 1e6:.1f} MB of text"
        )
        tokenizer = Tokenizer.train(texts, **arguments)
    tokenizer.save(target)
    return tokenizer


def _sample(
    parts: Mapping[str, Sequence[Part]], split: dict, train_bytes: int
) -> tuple[list[str], int]:
    """A fixed sample of the train split: documents from the beginnings of parts, in turn.

    Parts are opened in a fixed order that is mixed by hashing, a few at a time.
    """
    named = [
        (hashlib.blake2b(f"{name}/{number}".encode()).digest(), part)
        for name, source_parts in parts.items()
        for number, part in enumerate(source_parts)
    ]
    waiting = deque(part for _, part in sorted(named, key=lambda pair: pair[0]))
    active: deque[Iterator] = deque()
    texts: list[str] = []
    size = held_out = 0
    skipped: Counter = Counter()
    while size < train_bytes and (active or waiting):
        if waiting and len(active) < _SAMPLED_AT_ONCE:
            active.append(iter(waiting.popleft().documents(skipped)))
        documents = active.popleft()
        for document in documents:
            if not document.utf8:
                continue
            if split_of(document.utf8, **split) == "train":
                texts.append(document.text)
                size += len(document.utf8)
                active.append(documents)
                break
            held_out += 1
    if not texts:
        raise _no_documents(parts, skipped, held_out)
    return texts, size


def _require_documents(records: dict[str, list[dict]]) -> None:
    every = [record for source_records in records.values() for record in source_records]
    if not any(record["splits"]["train"]["documents"] for record in every):
        skipped: Counter = Counter()
        for record in every:
            skipped.update(record["skipped"])
        held_out = sum(record["splits"][split]["documents"] for record in every for split in SPLITS)
        raise _no_documents(records, skipped, held_out)


def _no_documents(names: Mapping[str, Any], skipped: Counter, held_out: int) -> UserError:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
    left_out = f" ({reasons} left out)" if reasons else ""
    if held_out:
        return UserError(
            f"there are no documents to train on in {', '.join(names)}{left_out}: {held_out:,} "
            "fell into validation or test, by the hash of the text; add more"
        )
    return UserError(
        f"there are no documents to train on in {', '.join(names)}{left_out}; check the sources"
    )


def _records(
    path: Path,
    request: dict,
    parts: Mapping[str, Sequence[Part]],
    split: dict,
    tokenizer: AnyTokenizer,
    workers: int,
    shown: Progress,
) -> dict[str, list[dict]]:
    """The records of all parts, written now or by an earlier run."""
    records: dict[str, list[dict | None]] = {}
    tasks = []
    for name, source_parts in parts.items():
        (path / name).mkdir(exist_ok=True)
        records[name] = [None] * len(source_parts)
        for number, part in enumerate(source_parts):
            fingerprint = request["sources"][name]["parts"][number][1]
            records[name][number] = finished_record(
                path / name, number, fingerprint=fingerprint, tokenizer_sha256=tokenizer.sha256
            )
            if records[name][number] is None:
                tasks.append(Task(name, number, part, fingerprint))
    total = sum(map(len, records.values()))
    if len(tasks) < total:
        shown.say(f"{total - len(tasks):,} of {total:,} parts are done already")
    shown.begin(done=total - len(tasks), total=total)
    for task, record in write_parts(path, tasks, tokenizer, split, workers, shown):
        records[task.source][task.number] = record
    shown.end()
    return records


def _write_manifest(
    path: Path,
    request: dict,
    sources: Mapping[str, Source],
    records: dict[str, list[dict]],
    tokenizer: AnyTokenizer,
) -> None:
    summaries, files = {}, {}
    for name in (TOKENIZER, REQUEST):
        files[name] = _summary_of_file(path / name)
    for name, source_records in records.items():
        skipped: Counter = Counter()
        for number, record in enumerate(source_records):
            skipped.update(record["skipped"])
            for file, summary in record["files"].items():
                files[f"{name}/{file}"] = summary
            file = record_path(path / name, number)
            files[f"{name}/{file.name}"] = _summary_of_file(file)
        parts = [{"name": record["name"], "splits": record["splits"]} for record in source_records]
        summaries[name] = {
            "description": repr(sources[name]),
            "splits": {
                split: {
                    key: sum(part["splits"][split][key] for part in parts)
                    for key in ("documents", "tokens", "text_bytes")
                }
                for split in SPLITS
            },
            "skipped": dict(sorted(skipped.items())),
            "parts": parts,
        }
    vocab_size = tokenizer.vocab.size
    manifest = {
        "format": FORMAT,
        "dtype": token_dtype(vocab_size),
        "vocab_size": vocab_size,
        "tokenizer_sha256": tokenizer.sha256,
        "request": request,
        "sources": summaries,
        "files": files,
    }
    write_json(path / MANIFEST, {**manifest, "sha256": manifest_sha256(manifest)})


def _summary_of_file(path: Path) -> dict:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _summary(source: dict) -> str:
    """One source's totals in one line."""
    sizes = [
        f"{split} {totals['documents']:,} documents, {totals['tokens']:,} tokens"
        for split, totals in source["splits"].items()
    ]
    sizes += [f"{count:,} left out as {reason}" for reason, count in source["skipped"].items()]
    return "; ".join(sizes)
