"""Reads the tokenizer files of a Hugging Face folder: the library's JSON and who is who in it."""

import json
import os
from types import ModuleType
from typing import Any

from jaxpretrain.data.vocab import NAMES
from jaxpretrain.errors import UserError
from jaxpretrain.storage import AnyPath, json_object

# What a checkpoint calls the special pieces if it does not say.
_USUAL = {
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}
# Pieces that no file names the roles of.
_MORE = {
    "fim_prefix": ("<fim_prefix>", "<|fim_prefix|>", "\u2581<PRE>"),
    "fim_middle": ("<fim_middle>", "<|fim_middle|>", "\u2581<MID>"),
    "fim_suffix": ("<fim_suffix>", "<|fim_suffix|>", "\u2581<SUF>"),
    **{name: (NAMES[name],) for name in ("mode_r", "mode_s", "mode_x")},
}
# Who takes the place of whom.
_STAND_IN = {
    "bos": ("bos", "cls", "eos", "sep"),
    "eos": ("eos", "sep", "bos", "cls"),
    "cls": ("cls", "bos", "eos", "sep"),
    "sep": ("sep", "eos", "bos", "cls"),
    "pad": ("pad", "eos", "sep", "bos", "cls"),
}
# Classes of `transformers`, which a tokenizer_config.json names with the ending "Tokenizer".
_WORDPIECE = {"Bert", "DistilBert", "Electra", "MobileBert", "ConvBert", "Funnel"}
_BYTE_LEVEL = {"GPT2", "Roberta", "Bart", "Longformer", "LED"}
# The roles that a class has where no file names them.
_BERTS = {role: f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
_OF_CLASSES = {
    **dict.fromkeys(_WORDPIECE, _BERTS),
    "GPT2": dict.fromkeys(("unk", "bos", "eos"), "<|endoftext|>"),
    "T5": {"pad": "<pad>", "unk": "<unk>", "eos": "</s>"},
    "Llama": {"unk": "<unk>", "bos": "<s>", "eos": "</s>"},
}
# Their names where only the model's type is said.
_OF_MODELS = {"bert": "Bert", "electra": "Electra", "gpt2": "GPT2", "t5": "T5"}


def library() -> ModuleType:
    """The library `tokenizers`.

    Raises:
        UserError: it is not installed.
    """
    # Parts are tokenized by processes, so that threads would only be in each other's way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "tokenizers of Hugging Face checkpoints need the package tokenizers: "
            "pip install 'jaxpretrain[hf]'"
        ) from None
    return tokenizers


def opened(content: dict, name: str) -> Any:
    """The library's tokenizer of a ``tokenizer.json``; `name` is what error messages call it.

    Raises:
        UserError: the library does not read it, or is not installed.
    """
    if not isinstance(content.get("model"), dict) or "added_tokens" not in content:
        raise UserError(f"{name} is not a tokenizer.json: it has no 'model' and 'added_tokens'")
    tokenizers = library()
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises no other
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} cannot be read by tokenizers {tokenizers.__version__}: {reason}"
        ) from None


def by_id(model: Any, size: int) -> list[str | None]:
    """The pieces of a library's tokenizer by their ids, None where there is none."""
    pieces: list[str | None] = [None] * size
    for piece, number in model.get_vocab(with_added_tokens=True).items():
        pieces[number] = piece
    return pieces


def read(folder: AnyPath) -> tuple[dict, dict]:
    """A folder's ``tokenizer.json``, or one made of its vocabulary, and its settings.

    Raises:
        UserError: it has no tokenizer, or one that is only known to the model's own code.
    """
    if (folder / "tokenizer.json").exists():
        return read_file(folder / "tokenizer.json")
    settings = settings_in(folder)
    kind = _class(settings)
    if (folder / "vocab.txt").exists() and kind in _WORDPIECE | {""}:
        return _added(_wordpiece(folder / "vocab.txt", settings), folder, settings), settings
    if all((folder / name).exists() for name in ("vocab.json", "merges.txt")):
        if kind in _BYTE_LEVEL | {""}:
            return _added(_byte_level(folder, settings), folder, settings), settings
    there = f" (that of a {settings['tokenizer_class']} cannot be made without it)" if kind else ""
    raise UserError(
        f"{folder} has no tokenizer.json{there}, nor a vocab.txt of WordPiece, nor vocab.json and "
        "merges.txt of byte-level BPE: save the tokenizer again with a recent transformers, or "
        "name another folder"
    )


def read_file(file: AnyPath) -> tuple[dict, dict]:
    """A ``tokenizer.json`` as `transformers` would use it, and the settings beside it.

    The classes of BERT, GPT-2 and T5 set a part of it themselves, from ``tokenizer_config.json`` or
    by what is usual for them, whatever the file says. The class is that of the model's
    ``config.json`` where the other names none; of any other the file is as it is. Tokens that only
    ``tokenizer_config.json`` has are added.
    """
    content, settings = json_object(file), settings_in(file.parent)
    kind = _kind_of(settings, file.parent)
    known = {token["content"] for token in content.get("added_tokens", [])}
    more = {token["content"] for token in (settings.get("added_tokens_decoder") or {}).values()}
    if more - known:
        content = _added(opened(content, f"the tokenizer {file}"), file.parent, settings)
    if kind in _WORDPIECE:
        lowered = {"lowercase": settings.get("do_lower_case", True)}
        lowered["strip_accents"] = settings.get("strip_accents")
        lowered["handle_chinese_chars"] = settings.get("tokenize_chinese_chars", True)
        content = _with(content, "normalizer", "BertNormalizer", lowered)
    if kind in _BYTE_LEVEL:
        spaced = {"add_prefix_space": settings.get("add_prefix_space", False)}
        content = _with(content, "pre_tokenizer", "ByteLevel", spaced)
    around = {"T5": (None, "eos"), **dict.fromkeys(_WORDPIECE, ("cls", "sep"))}
    if kind in around and content.get("post_processor") is None:
        made = opened(content, f"the tokenizer {file}")
        names = (role and _named(settings, role) for role in around[kind])
        made.post_processor = template(made, *names)
        content |= {"post_processor": json.loads(made.to_str())["post_processor"]}
    return content, settings


def _with(content: dict, part: str, kind: str, changes: dict) -> dict:
    """Content whose part is changed where it is of that kind."""
    found = content.get(part)
    if isinstance(found, dict) and found.get("type") == kind:
        return content | {part: found | changes}
    return content


def template(model: Any, first: str | None, last: str | None) -> Any:
    """What puts special pieces around a text, and between two, for a library's tokenizer.

    Args:
        model: that knows the pieces.
        first: before a text, or None.
        last: after each text, or None.

    Returns:
        A post-processor; None where there is nothing to put, or a piece is not known.
    """
    ids = {name: model.token_to_id(name) for name in (first, last) if name}
    if not ids or None in ids.values():
        return None
    single, second = ["$A:0"], ["$B:1"]
    if first:
        single = [f"{first}:0", *single]
    if last:
        single, second = [*single, f"{last}:0"], [*second, f"{last}:1"]
    return library().processors.TemplateProcessing(
        single=single, pair=single + second, special_tokens=list(ids.items())
    )


def _named(settings: dict, role: str) -> str:
    """The piece that has a role by the settings, or usually."""
    return _content(settings.get(f"{role}_token")) or _USUAL[role][0]


def _class(settings: dict) -> str:
    """The name of the tokenizer's class, without what all of them end in."""
    return str(settings.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")


def _kind_of(settings: dict, folder: AnyPath) -> str:
    """The class of a folder's tokenizer, by its name or by the model's type."""
    model = _model_config(folder).get("model_type")
    return _class(settings) or _OF_MODELS.get(str(model), "")


def settings_in(folder: AnyPath) -> dict:
    """What the files of a folder say of its tokenizer, one over the other, and over what is usual
    for its class."""
    found: dict = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            said = json_object(folder / name)
            found |= {key: value for key, value in said.items() if value is not None}
    usual = _OF_CLASSES.get(_kind_of(found, folder), {})
    return {f"{role}_token": piece for role, piece in usual.items()} | found


def model_size(folder: AnyPath) -> int:
    """Rows of the embedding table, by the model's ``config.json``; 0 where it does not say."""
    size = _model_config(folder).get("vocab_size")
    return size if isinstance(size, int) else 0


def _model_config(folder: AnyPath) -> dict:
    file = folder / "config.json"
    return json_object(file) if file.exists() else {}


def roles(content: dict, vocab: dict[str, int], settings: dict, name: str) -> dict[str, Any]:
    """The ids of the special pieces by their names in `Vocab`, None for those that are not there.

    Args:
        content: the ``tokenizer.json``.
        vocab: ids by piece.
        settings: see `settings_in`.
        name: what error messages call the tokenizer.

    Raises:
        UserError: there is no piece to begin or end a text with.
    """
    said = {role: [_content(settings.get(f"{role}_token"))] for role in _USUAL}
    if not any(said[role][0] in vocab for role in ("bos", "eos", "cls", "sep")):
        said = {role: [*said[role], *_USUAL[role]] for role in _USUAL}
    model = content["model"]
    if model.get("unk_id") is not None:
        said["unk"].append(model["vocab"][model["unk_id"]][0])
    said["unk"].append(model.get("unk_token"))
    found = {
        role: next((vocab[piece] for piece in pieces if piece in vocab), None)
        for role, pieces in {**said, **_MORE}.items()
    }
    if all(found[role] is None for role in _STAND_IN["eos"]):
        raise UserError(
            f"{name} has no special piece that begins or ends a text: name bos_token, eos_token, "
            "cls_token or sep_token in its tokenizer_config.json"
        )
    for role, others in {r: [found[o] for o in named] for r, named in _STAND_IN.items()}.items():
        found[role] = next(number for number in others if number is not None)
    sentinels = []
    while (piece := f"<extra_id_{len(sentinels)}>") in vocab:
        sentinels.append(vocab[piece])
    return found | {"sentinels": sentinels}


def _content(token: Any) -> str | None:
    """The piece that a role names, as a string or in an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _wordpiece(file: AnyPath, settings: dict) -> Any:
    """BERT's tokenizer of a list of pieces."""
    tokenizers = library()
    lines = file.read_bytes().decode().removesuffix("\n").split("\n")
    vocab = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
    unk = _content(settings.get("unk_token")) or "[UNK]"
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token=unk))
    made.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece(prefix="##")
    made.post_processor = template(made, _named(settings, "cls"), _named(settings, "sep"))
    return made


def _byte_level(folder: AnyPath, settings: dict) -> Any:
    """GPT-2's tokenizer of pieces and merges."""
    tokenizers = library()
    vocab = json_object(folder / "vocab.json")
    lines = (folder / "merges.txt").read_bytes().decode().split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(piece.endswith("</w>") for piece in vocab):
        raise UserError(
            f"{folder} has no tokenizer.json, and its vocab.json is not of byte-level BPE (pieces "
            "end in </w>): save the tokenizer again with a recent transformers"
        )
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    space = settings.get("add_prefix_space", False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=space)
    made.decoder = tokenizers.decoders.ByteLevel()
    return made


def _added(made: Any, folder: AnyPath, settings: dict) -> dict:
    """The library's JSON, with the tokens that were added later and the special ones as such."""
    tokenizers = library()
    before = made.get_vocab_size()
    wanted: dict[int, dict] = {}
    if (folder / "added_tokens.json").exists():
        added = json_object(folder / "added_tokens.json")
        wanted |= {number: {"content": piece} for piece, number in added.items()}
    decoder = settings.get("added_tokens_decoder") or {}
    wanted |= {int(number): token for number, token in decoder.items()}
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    for number, token in sorted(wanted.items()):
        made.add_tokens(
            [
                tokenizers.AddedToken(
                    token["content"],
                    special=token.get("special", False),
                    **{flag: token[flag] for flag in flags if flag in token},
                )
            ]
        )
        if made.token_to_id(token["content"]) != number:
            raise UserError(
                f"{folder} adds the piece {token['content']!r} as {number}, and the {before:,} "
                f"pieces of its vocabulary make it {made.token_to_id(token['content'])}: its files "
                "do not belong together"
            )
    for role, usual in _USUAL.items():
        token = settings.get(f"{role}_token")
        known = token if isinstance(token, dict) else {}
        # RoBERTa's mask takes the space before it along.
        known = {"lstrip": role == "mask" and _is_byte_level(made)} | known
        for piece in (_content(token), *usual):
            if piece is not None and made.token_to_id(piece) is not None:
                keep = {flag: known[flag] for flag in flags if flag in known}
                made.add_special_tokens([tokenizers.AddedToken(piece, special=True, **keep)])
    return json.loads(made.to_str())


def _is_byte_level(made: Any) -> bool:
    return type(made.decoder).__name__ == "ByteLevel"
