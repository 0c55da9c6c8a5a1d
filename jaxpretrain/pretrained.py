"""A Hugging Face model, asked about a text without a run: its loss, and what fits into the gaps.

With `load`, one line each:

    load("bert-folder").gaps("The quick brown [MASK] jumps over the lazy dog.")
    load("gpt2-folder").loss("The future of AI is")

In both the folder is a local one.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.data.tokenizer_hf import FastTokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation.scoring import MASK
from jaxpretrain.interop.huggingface import family_of, import_model, read_model
from jaxpretrain.models.attention import Visibility
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.types import Array


class Pretrained(NamedTuple):
    """A model and its tokenizer.

    Attributes:
        backbone: the model's functions.
        params: its parameters, a nested dict of float32 arrays.
        tokenizer: the folder's own, which encloses a text as the model is used to.
        visibility: "full" or "causal".
    """

    backbone: Backbone
    params: dict
    tokenizer: FastTokenizer
    visibility: Visibility

    def logits(self, ids: Sequence[int]) -> Array:
        """Scores over the vocabulary, float32 ``[length, vocab]``, of the ids of one text."""
        inputs = jnp.asarray([list(ids)], jnp.int32)
        return _logits(self.backbone, self.params, inputs, self.visibility)[0]

    def ids(self, text: str) -> list[int]:
        """The ids of a text in which ``[MASK]`` is the mask, with what encloses it.

        Raises:
            UserError: no tokens, or more than the model has positions for; a gap, and the
                tokenizer has no mask.
        """
        ids = self.tokenizer.enclosed(text, MASK)
        config = self.backbone.config
        if not ids or not text.strip():
            raise UserError("there is no text to score")
        if config.positions == "learned" and len(ids) > config.max_length:
            raise UserError(
                f"the text has {len(ids)} tokens, and the model reads {config.max_length}: "
                "shorten it"
            )
        return ids

    def loss(self, text: str) -> float:
        """The mean cross-entropy in nats, as `transformers` has it for ``labels=input_ids``.

        A causal model predicts each token but the first from those before it. One that sees the
        whole row predicts every token of it, special ones too, where it can read them: this is the
        number that the well-known snippet prints, not the loss of masked language modelling.

        Raises:
            UserError: see `ids`; a causal model needs two tokens.
        """
        ids = self.ids(text)
        logits, targets = self.logits(ids), np.asarray(ids)
        if self.visibility == "causal":
            logits, targets = logits[:-1], targets[1:]
            if not targets.size:
                raise UserError(f"{text!r} is one token, and nothing is before it: give more text")
        logs = jax.nn.log_softmax(logits)
        return -float(jnp.mean(logs[jnp.arange(targets.size), targets]))

    def gaps(self, text: str, *, top: int = 5) -> list[list[tuple[str, float]]]:
        """The likeliest tokens for each ``[MASK]`` of a text, with their probabilities.

        Args:
            text: with at least one ``[MASK]``.
            top: how many for each gap, best first.

        Raises:
            UserError: there is no gap, or the model is causal; see `ids`.
        """
        if MASK not in text:
            raise UserError(f"there is no {MASK} in {text!r}")
        if self.visibility == "causal":
            raise UserError(f"a causal model does not see what follows: it has no {MASK} to fill")
        ids = np.asarray(self.ids(text))
        p = np.asarray(jax.nn.softmax(self.logits(ids.tolist())))
        found = []
        for row in p[ids == self.tokenizer.vocab.mask]:
            best = np.argsort(-row, kind="stable")[:top]
            words = self.tokenizer.words(best)
            found.append([(word, float(row[i])) for word, i in zip(words, best, strict=True)])
        return found

    def describe(self, texts: Sequence[str], *, top: int = 5) -> list[str]:
        """Lines to read about one text; errors as of `loss` and `gaps`."""
        if len(texts) != 1:
            raise UserError(f"a --model is asked about one text, not {len(texts)}: put quotes")
        [text] = texts
        of = "each token given those before it"
        if self.visibility == "full":
            of = "every token of the row, which the model can read (labels=input_ids)"
        lines = [f"loss {self.loss(text):.4f} nats, {of}"]
        if MASK in text:
            for number, candidates in enumerate(self.gaps(text, top=top), start=1):
                lines.append(f"gap {number}")
                lines += [f"  {p:6.1%}  {word}" for word, p in candidates]
        return lines


def load(folder: str | Path) -> Pretrained:
    """A Hugging Face model of a local folder.

    Args:
        folder: with ``config.json``, safetensors and the tokenizer's files.

    Raises:
        UserError: it is no such model, or of a family or with an option that we do not have.
    """
    folder = Path(folder)
    theirs, tensors = read_model(folder)
    family = family_of(theirs)
    if family.preset == "t5":
        raise UserError(
            "a t5 reads one text and writes another: import it, and give score the --workdir"
        )
    config, params = import_model(theirs, tensors)
    config = replace(config, dtype="float32")
    tokenizer = FastTokenizer.from_folder(folder, size=config.vocab_size)
    return Pretrained(Backbone(config), params, tokenizer, family.sees)


@jax.jit(static_argnums=(0, 3))
def _logits(backbone: Backbone, params: dict, inputs: Array, visibility: Visibility) -> Array:
    positions = jnp.broadcast_to(jnp.arange(inputs.shape[1], dtype=jnp.int32), inputs.shape)
    ones = jnp.ones_like(inputs)
    with jax.default_matmul_precision("highest"):
        hidden = backbone.encode(params, inputs, ones, positions, visibility=visibility)
        return backbone.logits(params, hidden)
