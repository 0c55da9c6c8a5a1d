import jax
import numpy as np

from jaxpretrain.objectives.clm import CLM
from support.small import small_backbone, small_batch, small_vocab

VOCAB = small_vocab()


def test_every_token_but_the_first_of_a_document_is_predicted_once():
    batch = small_batch(0, VOCAB, rows=16)
    example = CLM().bind(None, VOCAB).corrupt(None, batch, train=True, progress=None)
    for row in range(16):
        expected = {
            place - 1: batch.tokens[row, place]
            for place in range(1, batch.tokens.shape[1])
            if batch.segments[row, place] > 0
            and batch.segments[row, place] == batch.segments[row, place - 1]
        }
        used = np.flatnonzero(np.asarray(example.weights[row]))
        assert {s: int(example.targets[row, s]) for s in used} == expected
        assert VOCAB.bos not in expected.values() and VOCAB.pad not in expected.values()


def test_loss_is_the_sum_over_the_documents_each_by_itself():
    """Documents packed in rows have the loss that they have alone (float32 rounding)."""
    batch = small_batch(4, VOCAB, rows=4, length=24)
    objective = CLM().bind(small_backbone(VOCAB), VOCAB)
    params = objective.init(jax.random.key(0))

    @jax.jit
    def run(batch):
        example, keys = objective.example(batch, jax.random.key(0), train=False, progress=None)
        return objective.loss(params, example, keys, train=False, progress=None)

    packed = run(batch)["loss"]
    total, weight = 0.0, 0.0
    for row in range(4):
        for segment in range(1, batch.segments[row].max() + 1):
            inside = batch.segments[row] == segment
            alone = np.zeros((1, 24), np.int32)
            alone[0, : inside.sum()] = batch.tokens[row, inside]
            found = (np.arange(24) < inside.sum()).astype(np.int32)[None]
            one = batch._replace(
                tokens=alone,
                segments=found,
                positions=np.arange(24, dtype=np.int32)[None] * found,
                row_ids=np.zeros(1, np.int32),
                epochs=np.zeros(1, np.int32),
            )
            result = run(one)["loss"]
            total, weight = total + float(result.total), weight + float(result.weight)
    assert weight == float(packed.weight)
    np.testing.assert_allclose(total, packed.total, rtol=1e-5)
