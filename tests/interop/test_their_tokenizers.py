"""Folders whose `tokenizer.json` is not all that `transformers` goes by, read beside it."""

import json

import pytest

from jaxpretrain.data.tokenizer_hf import FastTokenizer
from jaxpretrain.interop.origin import Origin
from jaxpretrain.interop.tokenizer_json import tokenizer_files
from support import hf_tokenizers as folders

transformers = pytest.importorskip("transformers")

TEXT = "The OBJECT, an \u00e9t\u00e9 \u6f22\u5b57 names it"
CASED, BARE = {"do_lower_case": False}, {"post_processor": None}
MORE = {"content": "names it", "special": False, "normalized": False, "lstrip": False}
MORE |= {"rstrip": False, "single_word": False, "__type": "AddedToken"}
OTHER = {"tokenizer_class": "PreTrainedTokenizerFast"}
# The kind of a tokenizer.json, what is changed in it, the model's type, and further settings.
CASES = {
    "cased": ("wordpiece", {}, "bert", CASED),
    "cased, by its class": ("wordpiece", {}, "", CASED | {"tokenizer_class": "BertTokenizer"}),
    "lower-casing, accents kept": ("wordpiece", {}, "electra", {"strip_accents": False}),
    "signs of Chinese in words": ("wordpiece", {}, "bert", {"tokenize_chinese_chars": False}),
    "lower-casing is usual": ("wordpiece", {"normalizer": {"lowercase": False}}, "bert", {}),
    "enclosing is usual": ("wordpiece", BARE, "bert", {}),
    "nothing is usual": ("wordpiece", BARE, "modernbert", {}),
    "not of BERT": ("wordpiece", {}, "modernbert", CASED),
    "of no class": ("wordpiece", {}, "bert", CASED | OTHER),
    "a space before": ("byte-level", {}, "gpt2", {"add_prefix_space": True}),
    "none is usual": ("prefixed", {}, "gpt2", {}),
    "as the file has it": ("prefixed", {}, "llama", {}),
    "a token more": ("wordpiece", {}, "bert", {"added_tokens_decoder": {"139": MORE}}),
    "T5's end": ("t5", {}, "t5", {"eos_token": "</s>"}),
    "T5's end, of no class": ("t5", {}, "t5", OTHER),
}


@pytest.fixture(params=CASES)
def folder(request, tmp_path):
    kind, changes, model, settings = CASES[request.param]
    made = folders.KINDS[kind](tmp_path / "model")
    file = made / "tokenizer.json"
    content = json.loads(file.read_text())
    for part, change in changes.items():
        content[part] = change and content[part] | change
    file.write_text(json.dumps(content))
    roles = ("unk", "pad", "cls", "sep", "mask") if kind == "wordpiece" else ()
    said = {f"{role}_token": f"[{role.upper()}]" for role in roles}
    (made / "tokenizer_config.json").write_text(json.dumps(said | settings))
    if model:
        (made / "config.json").write_text(json.dumps({"model_type": model}))
    return made


def test_ids_are_those_of_transformers(folder):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    wanted = theirs(TEXT).input_ids
    assert FastTokenizer.from_folder(folder).enclosed(TEXT, "[MASK]") == wanted
    assert FastTokenizer.from_file(folder / "tokenizer.json").enclosed(TEXT, "[MASK]") == wanted


def test_ids_are_theirs_after_an_export(folder, tmp_path):
    wanted = transformers.AutoTokenizer.from_pretrained(folder)(TEXT).input_ids
    tokenizer = FastTokenizer.from_folder(folder)
    (tmp_path / "out").mkdir()
    files = tokenizer_files(tokenizer, enclosing=(None, None), model_max_length=64)
    for name, text in files.items():
        (tmp_path / "out" / name).write_text(text)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT).input_ids == wanted
    # transformers 4 goes by this key, and takes False where there is none.
    part = tokenizer.library["pre_tokenizer"]
    said = json.loads(files["tokenizer_config.json"]).get("add_prefix_space", False)
    assert said == part.get("add_prefix_space", False)


FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")
NAMED = {
    "none": ("wordpiece", "bert", {}, {}),
    "one": ("wordpiece", "bert", {"cls_token": "[CLS]", "tokenizer_class": "BertTokenizer"}, {}),
    "objects in the map": (
        "wordpiece",
        "bert",
        {"tokenizer_class": "BertTokenizer"},
        {"cls_token": {"content": "[CLS]", **FLAGS}, "mask_token": {"content": "[MASK]", **FLAGS}},
    ),
    "padding of GPT-2": (
        "byte-level",
        "gpt2",
        {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|endoftext|>"},
        {},
    ),
    "nothing of GPT-2": ("byte-level", "gpt2", {}, {}),
    "T5's": ("t5", "t5", {"tokenizer_class": "T5Tokenizer"}, {"eos_token": "</s>"}),
}


@pytest.mark.parametrize("case", NAMED)
def test_roles_are_those_of_transformers(case, tmp_path):
    """As its classes have them where no file says so, and after an import and an export."""
    kind, model, config, mapped = NAMED[case]
    folder = folders.KINDS[kind](tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(mapped))
    (folder / "config.json").write_text(json.dumps({"model_type": model}))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = FastTokenizer.from_folder(folder)
    (tmp_path / "out").mkdir()
    said = Origin.of(folder, {}).tokenizer
    files = tokenizer_files(tokenizer, enclosing=("bos", "eos"), model_max_length=None, said=said)
    for name, text in files.items():
        (tmp_path / "out" / name).write_text(text)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for role in ROLES:
        wanted = getattr(theirs, f"{role}_token")
        assert getattr(back, f"{role}_token") == wanted, role
        if wanted is not None:
            assert getattr(tokenizer.vocab, role) == getattr(theirs, f"{role}_token_id"), role
    assert back.model_max_length == theirs.model_max_length
