"""Mixtures: what each task reads, that one pass gives what many give, weights and balance."""

import zlib
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.balance import Watch, adapted, jit_measure, measure
from jaxpretrain.errors import UserError
from jaxpretrain.objectives import OBJECTIVES, Mixture, Task
from jaxpretrain.objectives.base import total_loss
from jaxpretrain.objectives.clm import CLM
from jaxpretrain.objectives.mlm import MLM
from jaxpretrain.optim import make_optimizer
from jaxpretrain.sharding import Placement, make_mesh
from jaxpretrain.state import abstract_state, init_state
from jaxpretrain.step import jit_train_step, run_key
from support.markov import MarkovSource
from support.small import document_rows, progress_at, small_backbone, small_batch, small_vocab
from support.truth import as_batch, held_out, tiny_backbone

SEED = np.uint32(0)
VOCAB = small_vocab()
KEY = jax.random.key(5)
BACKBONE = small_backbone(VOCAB, layers=1, width=16, heads=2, token_types=2, scan_layers="off")


def mixture(*names, shares=None, weights=None, **settings):
    tasks = tuple(
        Task(
            name=f"the_{name}",
            objective=OBJECTIVES[name](),
            share=(shares or [1] * len(names))[i],
            weight=(weights or [1.0] * len(names))[i],
        )
        for i, name in enumerate(names)
    )
    return Mixture(tasks=tasks, **settings)


def sums_of(objective, params, batch, *, train=True, progress=None):
    progress = progress_at(0.0) if progress is None else progress

    @jax.jit
    def run(params, batch):
        example, keys = objective.example(batch, KEY, train=train, progress=progress)
        return objective.loss(params, example, keys, train=train, progress=progress), example

    return jax.tree.map(np.asarray, run(params, batch))


def alone(task, params, batch, rows):
    """A task's own loss on some rows, from its own objective and its own forward pass."""
    key = jax.random.fold_in(KEY, zlib.crc32(task.name.encode()))
    start = progress_at(0.0)

    @jax.jit
    def run(params, batch):
        example, keys = task.objective.example(batch, key, train=True, progress=start)
        some = jax.tree.map(lambda x: x[np.asarray(rows)], (example, keys))
        return task.objective.loss(params, *some, train=True, progress=start)["loss"]

    return run(params, batch)


# Three tasks, with counts; with a prefix, and slots beside a target at each position; slots alone.
SHARED = {
    "packed": ("mlm", "clm", "masked_diffusion"),
    "document": ("prefix_lm", "fim"),
    "few slots": ("mlm", "span_corruption"),
}


@pytest.mark.parametrize("names", SHARED.values(), ids=SHARED)
def test_one_pass_gives_what_a_pass_for_each_task_gives(names):
    objective = mixture(*names, mode="shared").bind(BACKBONE, VOCAB)
    params = objective.init(jax.random.key(0))
    batch = small_batch(0, VOCAB, rows=16, length=24, view=objective.views[0])
    sums, example = sums_of(objective, params, batch)
    drawn = example.extra["task"]
    assert len(set(drawn.tolist())) == len(names)
    for number, task in enumerate(objective.tasks):
        expected = alone(task, params, batch, np.flatnonzero(drawn == number))
        found = sums[f"{task.name}/loss"]
        np.testing.assert_allclose(found.total, expected.total, rtol=2e-5)
        np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-6)


def test_a_shared_pass_has_the_visibility_that_all_its_tasks_have():
    assert mixture("mlm", "masked_diffusion", mode="shared").visibility == "full"
    assert mixture("clm", "fim", mode="shared").visibility == "causal"
    assert mixture("mlm", "clm", mode="shared").visibility == "prefix"


def test_tasks_are_drawn_at_their_shares():
    objective = mixture("mlm", "clm", shares=[3, 1], mode="shared").bind(BACKBONE, VOCAB)
    batch = small_batch(1, VOCAB, rows=2000, length=16)
    make = jax.jit(partial(objective.example, train=True, progress=progress_at(0.0)))
    example, _ = make(batch, KEY)
    share = float(jnp.mean(example.extra["task"] == 0))
    assert abs(share - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 2000)


def test_split_gives_each_task_its_rows_and_every_row_to_one_task():
    objective = mixture("mlm", "nsp", "clm", shares=[2, 1, 1]).bind(BACKBONE, VOCAB)
    batch = document_rows(0, VOCAB, rows=16, length=12, full=True)
    read = {
        t.name: objective._rows_of(batch, i, True).row_ids for i, t in enumerate(objective.tasks)
    }
    assert [len(rows) for rows in read.values()] == [8, 4, 4]
    assert sorted(np.concatenate(list(read.values()))) == sorted(batch.row_ids)
    # Of each four neighbouring rows, which are on one device, two, one and one.
    np.testing.assert_array_equal(read["the_nsp"], batch.row_ids[2::4])
    params = objective.init(jax.random.key(0))
    sums, _ = sums_of(objective, params, batch)
    some = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:])[:, :2].reshape(8, -1), batch)
    some = some._replace(**{k: getattr(some, k)[:, 0] for k in ("row_ids", "epochs", "documents")})
    expected = alone(objective.tasks[0], params, some, range(8))
    np.testing.assert_allclose(sums["the_mlm/loss"].total, expected.total, rtol=2e-5)


def test_alternate_gives_each_step_to_one_task_in_turn():
    objective = mixture("mlm", "clm", shares=[2, 1], mode="alternate").bind(BACKBONE, VOCAB)
    params = objective.init(jax.random.key(0))
    batch = small_batch(2, VOCAB, rows=8, length=16)

    @jax.jit
    def run(step):
        progress = progress_at(0.0)._replace(step=step)
        example, keys = objective.example(batch, KEY, train=True, progress=progress)
        return objective.loss(params, example, keys, train=True, progress=progress)

    for step, active in enumerate(["mlm", "mlm", "clm"] * 2):
        sums = run(jnp.int32(step))
        for name in ("mlm", "clm"):
            assert (sums[f"the_{name}/loss"].weight > 0) == (name == active)


def test_held_out_every_task_reads_every_row_as_if_alone():
    objective = mixture("mlm", "clm", mode="shared").bind(BACKBONE, VOCAB)
    params = objective.init(jax.random.key(0))
    batch = small_batch(3, VOCAB, rows=8, length=16)
    sums, _ = sums_of(objective, params, batch, train=False)
    for task in objective.tasks:
        own, _ = sums_of(task.objective, params, batch, train=False)
        np.testing.assert_allclose(sums[f"{task.name}/loss"], own["loss"], rtol=1e-5)


def test_own_parameters_are_under_the_name_of_the_task():
    objective = mixture("bert", "rtd", "clm").bind(BACKBONE, VOCAB)
    params = objective.init(jax.random.key(0))
    assert params["tasks"].keys() == {"the_bert", "the_rtd"}
    assert params["tasks"]["the_rtd"].keys() == {"generator", "discriminator_head"}
    axes = jax.tree.map(lambda _: 0, objective.axes(), is_leaf=lambda x: isinstance(x, tuple))
    assert jax.tree.structure(axes) == jax.tree.structure(params)


def test_two_tasks_of_one_objective_start_with_parameters_of_their_own():
    tasks = tuple(Task(name=name, objective=OBJECTIVES["nsp"]()) for name in ("a", "b"))
    params = Mixture(tasks=tasks).bind(BACKBONE, VOCAB).init(jax.random.key(0))["tasks"]
    kernels = [jax.tree.leaves(params[name])[-1] for name in ("a", "b")]
    assert kernels[0].ndim == 2 and not np.array_equal(*kernels)


def test_scheduled_weights():
    task = Task(name="x", objective=OBJECTIVES["mlm"](), weight=2.0, final_weight=0.0)
    assert [float(task.weight_at(progress_at(p))) for p in (0.0, 0.25, 1.0)] == [2.0, 1.5, 0.0]
    constant = Task(name="x", objective=OBJECTIVES["mlm"](), weight=2.0)
    assert constant.weight_at(progress_at(0.5)) == 2.0


def test_learned_weights_have_the_gradient_of_the_paper():
    """Of ``exp(-s) * loss + s`` with respect to s, ``1 - exp(-s) * loss``, times the weight."""
    weights = [1.0, 3.0]
    objective = mixture("mlm", "clm", weighting="uncertainty", weights=weights)
    objective = objective.bind(BACKBONE, VOCAB)
    params = objective.init(jax.random.key(0))
    params["log_variance"]["the_clm"] = jnp.float32(0.7)
    batch = small_batch(4, VOCAB, rows=8, length=16)
    start = progress_at(0.0)
    coefficients = objective.coefficients(start)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        example, keys = objective.example(batch, KEY, train=True, progress=start)
        sums = objective.loss(params, example, keys, train=True, progress=start)
        return total_loss(coefficients, sums), sums

    (value, sums), gradient = loss(params)
    expected = 0.0
    for name, s, weight in (("the_mlm", 0.0, 1.0), ("the_clm", 0.7, 3.0)):
        mean = float(sums[f"{name}/loss"].mean())
        expected += weight * (np.exp(-s) * mean + s)
        np.testing.assert_allclose(
            gradient["log_variance"][name], weight * (1 - np.exp(-s) * mean), rtol=1e-4
        )
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixture("mlm", "clm", weights=[0.0, 0.0]), "sum to zero"),
        (lambda: mixture("mlm"), "at least two"),
        (lambda: mixture("mlm", "clm", weights=[-1.0, 1.0]), "weight is -1.0"),
        (lambda: mixture("mlm", "clm", shares=[0, 1]), "share is 0"),
        (
            lambda: mixture("mlm", "clm", weighting="equal_share", measure_every=0),
            "measure_every 0",
        ),
    ],
    ids=["zero", "one", "negative", "share", "unmeasured"],
)
def test_mixtures_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("objective", "parts", "message"),
    [
        (mixture("mlm", "nsp", mode="shared"), {}, "the_nsp cannot share one forward pass"),
        (mixture("mlm", "clm", shares=[2, 1]), {}, "make it a multiple of 3"),
        (mixture("mlm", "clm"), {"devices": 8}, "8 devices x 1 microbatches: .* multiple of 16"),
        (mixture("mlm", "crops"), {"microbatches": 2}, "microbatches must be 1"),
    ],
    ids=["shared", "shares", "devices", "microbatches"],
)
def test_runs_that_cannot_work_are_refused(objective, parts, message):
    with pytest.raises(UserError, match=message):
        objective.bind(BACKBONE, VOCAB).check_run(length=16, batch_size=8, **parts)


def prepared(objective, steps=300):
    optimizer = make_optimizer(
        total_steps=steps, learning_rate=3e-3, warmup_steps=10, weight_decay=0.0, clip_norm=0.0
    )
    placement = Placement(make_mesh(devices=jax.devices()[:1]))
    abstract = abstract_state(objective, optimizer, placement)
    settings = {"total_steps": steps, "microbatches": 1}
    state = init_state(objective, optimizer, 0, abstract)
    return optimizer, (abstract, placement), state, settings


MEASURED = small_batch(6, VOCAB, rows=8, length=16)


@cache
def gradients_of_means(mode):
    """Of the losses of mlm and clm with respect to the backbone, as two vectors."""
    objective = mixture("mlm", "clm", mode=mode).bind(BACKBONE, VOCAB)
    seen, start = objective.measured(), progress_at(0.0)

    @jax.jit
    @jax.jacrev
    def gradients(params):
        example, keys = seen.example(MEASURED, run_key(0), train=True, progress=start)
        sums = seen.loss(params, example, keys, train=True, progress=start)
        return jnp.stack([sums["the_mlm/loss"].mean(), sums["the_clm/loss"].mean()])

    tree = jax.tree.leaves(gradients(prepared(objective)[2].params))
    return [np.concatenate([np.ravel(leaf[i]) for leaf in tree]) for i in range(2)]


@pytest.mark.parametrize(
    ("mode", "weighting"),
    [("split", "fixed"), ("split", "equal_share"), ("alternate", "uncertainty")],
)
def test_shares_cosines_and_weights_are_those_of_the_gradients(mode, weighting):
    """The weight that is logged has all factors in it."""
    objective = mixture("mlm", "clm", weights=[1.0, 3.0], mode=mode, weighting=weighting)
    objective = objective.bind(BACKBONE, VOCAB)
    _, _, state, settings = prepared(objective)
    weights = {"the_mlm": 1.0, "the_clm": 3.0}
    if weighting == "uncertainty":
        state.params["log_variance"]["the_clm"] = jnp.float32(0.7)
        weights["the_clm"] *= np.exp(-0.7)
    look = jax.jit(partial(measure, mixture=objective, **settings))
    after, metrics = look(state, MEASURED, SEED)
    if weighting == "equal_share":
        assert after.balance["the_clm"] != 1.0
        weights = {name: weights[name] * float(after.balance[name]) for name in weights}
    for name, weight in weights.items():
        np.testing.assert_allclose(metrics[f"task_weight/{name}"], weight, rtol=1e-6)
    first, second = gradients_of_means(mode)
    a, b = np.linalg.norm(first), np.linalg.norm(second)
    cosine = first @ second / (a * b)
    a, b = a * weights["the_mlm"], b * weights["the_clm"]
    np.testing.assert_allclose(metrics["gradient_share/the_mlm"], a / (a + b), rtol=1e-4)
    np.testing.assert_allclose(
        metrics["gradient_cosine/the_mlm~the_clm"], cosine, rtol=1e-3, atol=1e-4
    )


def test_adapted_factors_bring_the_shares_to_the_proportion_of_the_weights():
    weights = {"a": 1.0, "b": 3.0}
    norms = {"a": 50.0, "b": 3.0}  # with the weights
    factors = adapted({"a": 1.0, "b": 1.0}, norms, weights, first=jnp.bool_(True))
    found = {name: float(factors[name]) * norms[name] for name in norms}
    assert found["a"] / (found["a"] + found["b"]) == pytest.approx(0.25)
    assert sum(weights[n] * float(factors[n]) for n in weights) == pytest.approx(4.0)
    # A task without a gradient on this batch, or without weight, keeps its factor.
    kept = adapted({"a": 0.5, "b": 2.0}, norms | {"b": 0.0}, weights, first=jnp.bool_(False))
    assert float(kept["b"]) == pytest.approx(2.0 * 4.0 / 6.5)
    off = adapted({"a": 1.0, "b": 1.0}, norms, {"a": 0.0, "b": 0.0}, first=jnp.bool_(True))
    assert [float(x) for x in off.values()] == [1.0, 1.0]
    half = adapted({"a": 1.0, "b": 1.0}, norms, weights, first=jnp.bool_(False))
    assert float(factors["a"]) < float(half["a"]) < 1.0


def test_the_watch_says_once_who_drowns_out_the_others_and_what_to_change():
    watch = Watch(mixture("mlm", "clm", weights=[4.0, 1.0], alarm_share=0.8, alarm_after=2))

    def see(share):
        return watch.see(
            {
                "gradient_share/the_mlm": share,
                "gradient_share/the_clm": 1 - share,
            }
        )

    assert [see(share) for share in (0.9, 0.7, 0.9)] == [None] * 3
    line = see(0.8 + 1e-6)
    assert "the_mlm has held 80% of the gradient at the last 2 measurements" in line
    assert "lower objective.tasks.the_mlm.weight from 4 to about 1" in line
    assert see(0.95) is None


def test_the_weight_that_is_advised_leaves_each_of_the_others_as_much():
    watch = Watch(mixture("mlm", "clm", "mtp", weights=[4.0, 1.0, 1.0], alarm_after=1))
    shares = {"the_mlm": 0.92, "the_clm": 0.05, "the_mtp": 0.03}
    line = watch.see({f"gradient_share/{name}": share for name, share in shares.items()})
    # A weight w in place of 4 has w / 4 * 0.92 beside 0.04 on average: w = 0.174.
    assert "from 4 to about 0.17" in line


@dataclass(frozen=True, kw_only=True)
class LoudCLM(CLM):
    """A loss in a unit that makes it ten thousand times larger."""

    loudness: float = 10_000.0

    def coefficients(self, progress):
        return {"loss": self.loudness}


def test_equal_shares_mend_a_mixture_built_to_be_lopsided():
    """A causal task that is ten thousand times louder than the masked task beside it.

    With fixed weights the masked task does not learn how frequent the symbols are; with equal
    shares it learns what their neighbours say of them.
    """
    source = MarkovSource.random(8, seed=6, concentration=0.3)
    vocab = small_vocab(regular=8)
    backbone = tiny_backbone(vocab)
    steps = 150

    def text(seed):
        return as_batch(source.sample(np.random.default_rng(seed), 16, 32), first=32 * seed)

    def run(weighting):
        tasks = (
            Task(name="clm", objective=LoudCLM()),
            Task(name="mlm", objective=MLM(mask_rate=0.3)),
        )
        mixed = Mixture(tasks=tasks, weighting=weighting, measure_every=25).bind(backbone, vocab)
        optimizer, placed, state, settings = prepared(mixed, steps)
        step = jit_train_step(mixed, optimizer, *placed, **settings)
        look = jit_measure(mixed, *placed, **settings)
        watch, warnings, shares = Watch(mixed), [], []
        for number in range(steps):
            batch = text(number)
            if number % mixed.measure_every == 0:
                state, metrics = look(state, batch, SEED)
                shares.append(float(metrics["gradient_share/clm"]))
                warnings.append(watch.see({k: float(v) for k, v in metrics.items()}))
            state, _ = step(state, batch, SEED)
        alone = tasks[1].objective.bind(backbone, vocab)
        loss = held_out(alone, state.params, text, batches=16)["loss"]
        return loss, np.array(shares), [line for line in warnings if line]

    drowned, shares, warnings = run("fixed")
    mended, balanced, quiet = run("equal_share")
    assert (shares > 0.99).all() and "equal_share" in warnings[0]
    assert abs(balanced.mean() - 0.5) < 0.1 and not quiet
    # Measured: 4.94 and 1.62 nats per hidden token; the symbols' frequencies alone give 1.85.
    unigram = source.unigram_entropy()
    assert drowned > unigram + 1.0 and mended < unigram - 0.1
