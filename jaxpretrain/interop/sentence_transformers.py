"""A model of texts as vectors, laid out for the library sentence-transformers."""

import json

PACKAGE = "sentence_transformers.models"
# Its poolings, by the names that all of its versions read, and ours.
POOLINGS = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "max_tokens": None,
    "mean_sqrt_len_tokens": None,
    "weightedmean_tokens": None,
    "lasttoken": "last",
}


def files(*, width: int, pooling: str, longest: int) -> dict[str, str]:
    """What lies beside a model of `transformers`: pooling, and normalisation to length 1.

    Args:
        width: of a vector.
        pooling: "cls", "mean" or "last".
        longest: tokens that are read of a text, with those that enclose it.

    Returns:
        Contents by path in the folder.
    """
    modules = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    contents = {
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": f"{PACKAGE}.{kind}"}
            for number, (path, kind) in enumerate(modules.items())
        ],
        "sentence_bert_config.json": {"max_seq_length": longest, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            **{f"pooling_mode_{theirs}": ours == pooling for theirs, ours in POOLINGS.items()},
        },
    }
    return {path: json.dumps(value, indent=2) + "\n" for path, value in contents.items()}
