"""Folders as Hugging Face checkpoints have them, with small tokenizers."""

import json
import random
from functools import partial
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from support.tiny_source import topics

TEXTS = topics(1, 20)[0]
WORDS = "the statement is executed a program , . ( ) ? ' an object which value names it".split()
ENDINGS = "##ed ##ing ##ment ##ly".split()


def bert_pieces() -> list[str]:
    """In BERT's layout: padding first, unused pieces around the special ones, then text."""
    letters = [chr(code) for code in [*range(ord("a"), ord("z") + 1), *range(ord("0"), 58)]]
    return [
        "[PAD]",
        *(f"[unused{n}]" for n in range(5)),
        *("[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *(f"[unused{n}]" for n in range(5, 9)),
        *'!"#$%&*+-/:;<=>@[]^_`{|}~\\',
        *letters,
        *(f"##{letter}" for letter in letters),
        *(word for word in WORDS if len(word) > 1 or not word.isalpha()),
        *ENDINGS,
        *("\u6f22", "\u5b57", "##\u3044", "\u3044", "\u044f", "##\u20ac"),
    ]


def wordpiece_vocabulary(folder: Path, **settings) -> Path:
    """A folder with ``vocab.txt``, as the first BERT had."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(bert_pieces()) + "\n")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def wordpiece(folder: Path) -> Path:
    """A folder with a ``tokenizer.json`` that encloses texts, and the names of the roles."""
    folder.mkdir(exist_ok=True)
    vocab = {piece: number for number, piece in enumerate(bert_pieces())}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    names = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    made.add_special_tokens(list(names.values()))
    made.post_processor = processors.BertProcessing(
        ("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"])
    )
    made.save(str(folder / "tokenizer.json"))
    settings = {f"{role}_token": piece for role, piece in names.items()}
    settings["mask_token"] = {"content": "[MASK]", "lstrip": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def byte_level(folder: Path, *, add_prefix_space: bool = False) -> Path:
    """A folder as GPT-2's: the one special piece is the last."""
    folder.mkdir(exist_ok=True)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(folder / "tokenizer.json"))
    said = {f"{role}_token": "<|endoftext|>" for role in ("bos", "eos", "unk")}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def llama(folder: Path) -> Path:
    """A folder as Llama 2's: BPE that writes spaces as U+2581, and bytes for what it lacks."""
    folder.mkdir(exist_ok=True)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", ".", ",", *(chr(code) for code in range(ord("a"), ord("z") + 1))]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("i", "s"), ("\u2581", "is")]
    pieces += [a + b for a, b in merges]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))
    return folder


def t5(folder: Path) -> Path:
    """A folder as T5's: Unigram, no bos, sentinels whose ids run downwards."""
    folder.mkdir(exist_ok=True)
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"\u2581{word}", -2.0) for word in WORDS] + [("\u2581", -3.0)]
    letters = [(chr(code), -6.0) for code in range(ord("a"), ord("z") + 1)]
    made = Tokenizer(models.Unigram([*special, *words, *letters], unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.add_special_tokens([f"<extra_id_{n}>" for n in range(99, -1, -1)])
    made.save(str(folder / "tokenizer.json"))
    names = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
    said = {f"{role}_token": {"content": piece} for role, piece in names.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(said))
    return folder


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Strings of words, spaces, and characters from all of Unicode."""
    rng = random.Random(seed)
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    pools = ["abcde \n", "the \u00e9e\u0301\u0130.,'", " \t\n\r\u2028\xa0", "\u6f22\u5b57\u3044 a"]

    def part(pool: str) -> str:
        lot = rng.random()
        if lot < 0.3:
            return rng.choice(WORDS) + rng.choice(["", " "])
        return rng.choice(pool) if lot < 0.7 else chr(rng.randrange(*rng.choice(planes)))

    return [
        "".join(part(rng.choice(pools)) for _ in range(rng.randrange(30))) for _ in range(count)
    ]


KINDS = {
    "wordpiece": wordpiece,
    "vocab.txt": wordpiece_vocabulary,
    "cased": partial(wordpiece_vocabulary, do_lower_case=False, tokenizer_class="BertTokenizer"),
    "byte-level": byte_level,
    "prefixed": partial(byte_level, add_prefix_space=True),
    "llama": llama,
    "t5": t5,
}


def of_all_kinds(base: Path) -> dict[str, Path]:
    """A folder for each of `KINDS`, in one that is there."""
    return {kind: make(base / kind) for kind, make in KINDS.items()}
