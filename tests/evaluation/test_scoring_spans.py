"""What fits into gaps by models that write spans, against the objectives' own losses."""

import re

import jax
import numpy as np
import pytest

from jaxpretrain.assemble import build
from jaxpretrain.evaluation.scoring_spans import SPAN, spans
from jaxpretrain.main import main
from jaxpretrain.objectives.sequence_to_sequence import TwoSequences
from jaxpretrain.types import Batch
from support import tiny_run
from support.made_run import make_run
from support.small import at_random

TEXT = "The [MASK] is executed [MASK] twice."
ROOM = 20  # tokens of a target
KINDS = {
    "decoder": ("span_corruption", {"model__decoder_layers": 1}),
    "one stack": ("span_corruption", {"model__layers": 2}),
    "modes": ("ul2", {}),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_config_file):
    return tiny_run.tokenizer_of(tiny_config_file)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_as_likely_as_the_loss_says(kind, tiny_config_file, tokenizer):
    name, switches = KINDS[kind]
    config = tiny_run.config(tiny_config_file, objective__name=name, **switches)
    pieces = build(config, tokenizer.vocab)
    objective, params, vocab = pieces.objective, at_random(pieces.abstract.params), tokenizer.vocab
    sentinels = list(vocab.sentinels[:2])
    source = [*tokenizer.encode_gaps(TEXT, "[MASK]"), vocab.eos]
    for sentinel in sentinels:
        source[source.index(vocab.mask)] = sentinel
    source = np.array([vocab.mode_r] * (kind == "modes") + source, np.int32)

    class Given(type(objective)):
        """Of which a batch is the target, and the source is that of the text."""

        def sequences(self, keys, batch, *, train):
            count = (batch.segments > 0).sum(axis=1)
            size = np.array([len(source)], np.int32)
            extra = {"mode": size} if kind == "modes" else None
            return TwoSequences(source[None], size, batch.tokens, count, extra)

        def single_stack_size(self, length, *, train):
            return len(source) + length

    fixed = Given().bind(objective.backbone, vocab)

    @jax.jit
    def costs(targets, segments):
        """What targets cost, in nats ``[targets]``."""

        def cost(target, segments):
            place = np.arange(ROOM, dtype=np.int32)[None]
            number = np.zeros(1, np.int32)
            batch = Batch(target[None], segments[None], place, number, number, number)
            how = {"train": False, "progress": None}
            example, keys = fixed.example(batch, jax.random.key(0), **how)
            return fixed.loss(params, example, keys, **how)["loss"].total

        return jax.lax.map(lambda pair: cost(*pair), (targets, segments), batch_size=64)

    def likelihoods(told):
        """Of every token to be the next."""
        targets = np.zeros((vocab.size, ROOM), np.int32)
        targets[:, : len(told)] = told
        targets[:, len(told)] = np.arange(vocab.size)
        segments = np.broadcast_to(np.arange(ROOM) <= len(told), targets.shape).astype(np.int32)
        nats = np.asarray(costs(targets, segments), np.float64)
        return np.exp(-nats) / np.exp(-nats).sum()

    found = spans(objective, params, tokenizer, TEXT, length=32)
    told, ends = [], {*vocab.sentinels, vocab.eos}
    for sentinel, span in zip(sentinels, found, strict=True):
        told.append(sentinel)
        p = likelihoods(told)
        np.testing.assert_allclose([q for _, q in span.first], -np.sort(-p)[:5], rtol=1e-4)
        assert span.first[0][0] == tokenizer.words([p.argmax()])[0]
        written = []
        while len(written) < SPAN and (best := int(likelihoods(told).argmax())) not in ends:
            written.append(best)
            told.append(best)
        assert tokenizer.decode(written).strip() == span.text


def test_from_the_command_line(tokenizer, tmp_path, capsys):
    run = f"--workdir={make_run(tmp_path / 'run', tokenizer, 'base', 'span_corruption', layers=1)}"
    assert main(["score", run, "The [MASK] is [MASK].", "--top=2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 6 and out[0].startswith("gap 1: '") and out[3].startswith("gap 2: '")
    for text, message in (
        ("The end.", "has nothing to say of a text: .* those of spans one with .MASK."),
        ("[MASK] " * 101, "101 gaps, and the tokenizer 100 sentinels"),
        ("[MASK] end " * 40, "shorten it"),
    ):
        assert main(["score", run, text]) == 2
        assert re.search(message, capsys.readouterr().err)
