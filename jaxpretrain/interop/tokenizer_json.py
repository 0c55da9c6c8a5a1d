"""Our tokenizer as a fast tokenizer of Hugging Face, which gives the same ids for any text.

The rules for lines are those of `Tokenizer`, said in that library's terms: its normalizer puts in
the spaces, and the piece of a newline is called newline *and space*, so that a newline which is not
before a non-empty line has no piece and falls back to its byte.

By that library's convention the name of a special piece in a text is the piece. `MASK` and the
sentinels stand for tokens of the text: they take the spaces before them, and what follows them is
not given one (as `evaluation.scoring.encoded` has it). The others are between texts, each of which
is encoded as it is on its own.
"""

import json
from collections.abc import Mapping
from typing import Any

from jaxpretrain.data import model_file
from jaxpretrain.data.tokenizer import STRETCH, Tokenizer
from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.data.tokenizer_folder import template
from jaxpretrain.data.tokenizer_hf import FastTokenizer
from jaxpretrain.data.vocab import NAMES, SPECIAL
from jaxpretrain.errors import UserError

MASK = NAMES["mask"]
_IN_TEXT = {MASK, *NAMES["sentinels"]}
_GAP = r"(?:\[MASK\]|<extra_id_[1-9]?[0-9]>)"  # that is, `_IN_TEXT`
# As many characters as are encoded at once, where there is no place among them that no piece
# crosses: `Tokenizer` cuts there. It begins at such a place or where the one before it ends.
_STRETCH_OF_ONE = (
    r"(?:\G|(?<=\n )|(?<=\u2581)|(?<![ \n])(?= ))"
    rf"[^\n\u2581](?>(?:[^ \n\u2581]|(?<= ) ){{{STRETCH - 1}}})"
)
_NEWLINE = {"unigram": "\n ", "bpe": "<0x0A> "}  # of BPE's pieces, each is made from two others


def tokenizer_files(
    tokenizer: AnyTokenizer,
    *,
    exactly: bool = False,
    said: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, str]:
    """The files that ``transformers.AutoTokenizer`` reads; a tokenizer of theirs is as it was.

    Args:
        tokenizer: of a run.
        exactly: that of theirs is to enclose a text as `settings` say, not as it did.
        said: of theirs, keys of its ``tokenizer_config.json`` that count, if it was read with one.
        settings: see `fast_tokenizer`.

    Raises:
        UserError: the library is not installed.
    """
    if isinstance(tokenizer, Tokenizer):
        return fast_tokenizer(tokenizer, **settings)
    assert isinstance(tokenizer, FastTokenizer)
    longest = settings["model_max_length"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if longest is None else {"model_max_length": longest}),
        "model_input_names": _inputs(settings.get("has_types", False)),
        "clean_up_tokenization_spaces": False,
        **(_roles(tokenizer, settings["enclosing"]) if not _names_roles(said or {}) else {}),
        **(said or {}),
    }
    # Which transformers 4 sets to False where this file does not name it.
    space = (tokenizer.library.get("pre_tokenizer") or {}).get("add_prefix_space")
    if space is not None:
        config["add_prefix_space"] = space
    library = json.dumps(tokenizer.library, ensure_ascii=False)
    if exactly:
        import tokenizers

        fast = tokenizers.Tokenizer.from_str(library)
        vocab = tokenizer.vocab
        ids = [name and getattr(vocab, name) for name in settings["enclosing"]]
        names = [number if number is None else tokenizer.pieces([number])[0] for number in ids]
        fast.post_processor = template(fast, *names)
        library = fast.to_str(pretty=False)
    return {
        "tokenizer.json": library,
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }


def _names_roles(said: Mapping[str, Any]) -> bool:
    return any(key.endswith("_token") for key in said)


def _roles(tokenizer: FastTokenizer, enclosing: tuple[str | None, str | None]) -> dict[str, str]:
    """The pieces by their roles, but for those that only stand in for one: `transformers` takes
    what is padding for nothing to learn."""
    vocab = tokenizer.vocab
    pairs = {"cls", "sep"}
    ends = {"bos", "eos"}
    named = {"unk", "mask", *(pairs if pairs & set(enclosing) else ends)}
    found = {name: getattr(vocab, name) for name in sorted(named)}
    if vocab.pad not in (vocab.bos, vocab.eos, vocab.cls, vocab.sep):
        found["pad"] = vocab.pad
    return {f"{n}_token": tokenizer.pieces([i])[0] for n, i in found.items() if i is not None}


def fast_tokenizer(
    tokenizer: Tokenizer,
    *,
    enclosing: tuple[str | None, str | None],
    model_max_length: int | None,
    has_types: bool = False,
) -> dict[str, str]:
    """The files that ``transformers.AutoTokenizer`` reads.

    Args:
        tokenizer: one that this program trained. A unigram model that was trained before its scores
            were made exact may cut a word differently where two ways are equally good.
        enclosing: the special pieces before and after a text by their names in `Vocab`, such as
            ``("cls", "sep")`` or ``(None, "eos")``. A second text has only the latter.
        model_max_length: tokens that the model reads, the enclosing ones included; of theirs None
            says that `said` has it, if anything has.
        has_types: whether the model tells the two texts of a pair apart.

    Returns:
        File name to content.

    Raises:
        UserError: the library is not installed.
    """
    first, last = (name and NAMES[name] for name in enclosing)
    fast = _pipeline(tokenizer)
    fast.post_processor = template(fast, first, last)
    roles = {f"{name}_token": NAMES[name] for name in ("pad", "unk", "bos", "eos", "mask")}
    if first and last:
        roles |= {"cls_token": first, "sep_token": last}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "additional_special_tokens": [name for name in SPECIAL if name not in roles.values()],
        "model_max_length": model_max_length,
        "model_input_names": _inputs(has_types),
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": fast.to_str(pretty=False),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def _pipeline(tokenizer: Tokenizer) -> Any:
    """The `tokenizers.Tokenizer`, which encloses nothing."""
    try:
        import tokenizers
        from tokenizers import decoders, normalizers, pre_tokenizers
    except ImportError:
        raise UserError(
            "a tokenizer for Hugging Face needs its library: pip install 'jaxpretrain[hf]'"
        ) from None

    kind = model_file.algorithm(tokenizer.model_bytes)
    newline = _NEWLINE[kind]
    pieces = [_renamed(piece, newline) for piece in model_file.pieces(tokenizer.model_bytes)]
    fast = tokenizers.Tokenizer(
        _unigram(pieces, newline) if kind == "unigram" else _bpe(pieces, newline)
    )
    regex = tokenizers.Regex
    fast.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend(" "),
            normalizers.Replace(regex(r"\A (?=\n)"), ""),
            normalizers.Replace(regex(rf"(?<! ) ++(?={_GAP})"), ""),
            normalizers.Replace(regex(rf"\n(?=[^\n])(?!{_GAP})"), "\n  "),
        ]
    )
    cuts = [pre_tokenizers.Split(regex(_STRETCH_OF_ONE), "isolated")]
    if kind == "unigram":
        # The model knows the names of the byte pieces, and a text may spell one. There is no piece
        # over this place, as one has letters of one script only, and digits are of none.
        cuts.append(pre_tokenizers.Split(regex("(?<=<0)(?=x[0-9A-F]{2}>)"), "isolated"))
    fast.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace(newline, "\n"),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(regex(r"(?:\A|(?<=\n)) "), ""),
        ]
    )
    fast.add_special_tokens(
        [tokenizers.AddedToken(name, normalized=name in _IN_TEXT) for name in SPECIAL]
    )
    return fast


def _renamed(piece: model_file.Piece, newline: str) -> model_file.Piece:
    text = newline if piece.text == "\n" else piece.text.replace("\u2581", " ")
    return piece._replace(text=text)


def _unigram(pieces: list[model_file.Piece], newline: str) -> Any:
    from tokenizers import models

    scores = {piece.text: piece.score for piece in pieces}
    # More than any other way to cut the spaces after it can be better by, so that it is chosen.
    scores[newline] = -min(scores.values()) * max(map(len, scores))
    return models.Unigram(list(scores.items()), SPECIAL.index(NAMES["unk"]), byte_fallback=True)


def _bpe(pieces: list[model_file.Piece], newline: str) -> Any:
    """SentencePiece joins any two pieces that give one, the best piece first, so each way to cut a
    piece in two is a merge."""
    from tokenizers import models

    normal = {
        piece.text: piece.score
        for piece in pieces
        if piece.type == model_file.NORMAL and piece.text != newline
    }
    merges = [(newline[:-1], newline[-1])]
    for text in sorted(normal, key=normal.get, reverse=True):
        for middle in range(1, len(text)):
            if text[:middle] in normal and text[middle:] in normal:
                merges.append((text[:middle], text[middle:]))
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    return models.BPE(ids, merges, unk_token=NAMES["unk"], byte_fallback=True)


def _inputs(has_types: bool) -> list[str]:
    """What a model takes, as transformers names it; it gives types unasked to whoever can."""
    return ["input_ids", *["token_type_ids"] * has_types, "attention_mask"]
