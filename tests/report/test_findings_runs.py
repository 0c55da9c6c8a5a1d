import pytest

from jaxpretrain.report.findings import findings
from support.findings_results import (
    LOSS_APART,
    SST2,
    Group,
    ablation,
    evidence,
    found,
    held_out,
    shuffled,
    task,
)


def balance(shares, cosines=(0.0,) * 10):
    """Measurements of the tasks words and pairs; the first five are another task's."""
    early = [{"step": 0, "gradient_share/words": 0.1, "gradient_share/pairs": 0.9}] * len(shares)
    late = [
        {
            "step": 9,
            "gradient_share/words": share,
            "gradient_share/pairs": 1 - share,
            "gradient_cosine/words~pairs": cosine,
        }
        for share, cosine in zip(shares, cosines, strict=False)
    ]
    return ablation({"mix": Group("mixture", cell={"balance": early + late})})


DROWNS, FIGHTS = "one_task_drowns_others", "tasks_fight"


def test_one_task_drowns_the_others():
    results = balance([0.90, 0.92, 0.94, 0.92, 0.92])
    text = evidence(DROWNS, results)
    assert "words has 0.920 [" in text and "pairs 0.080" in text and "5 measurements" in text
    assert "objective.tasks.words.weight" in found(DROWNS, results)[0].advice
    assert not found(FIGHTS, results)


@pytest.mark.parametrize(
    "shares",
    [
        [0.7] * 5,
        [0.95, 0.65, 0.95, 0.65, 0.95],  # above it on average, within the scatter
        [0.95] * 3,  # too few
        [float("nan")] * 5,
        [None] * 3 + [0.95] * 3,
        [],
    ],
)
def test_no_task_drowns_the_others(shares):
    made = [{"gradient_share/words": s, "gradient_share/pairs": 0.1} for s in shares]
    early = [{}] * len(made)
    assert not found(DROWNS, ablation({"mix": Group("mixture", cell={"balance": early + made})}))


def test_tasks_that_fight():
    text = evidence(FIGHTS, balance([0.5] * 5, [-0.3, -0.32, -0.28, -0.3, -0.3]))
    assert "words and pairs is -0.300 [-0.3" in text and "5 measurements" in text
    for cosines in ([-0.05] * 5, [-0.9, 0.6, -0.9, 0.6, -0.9], [-0.3] * 3, [0.3] * 5):
        assert not found(FIGHTS, balance([0.5] * 5, cosines))


UNIFORM = "uniform_data"


def memorizing(train, curve=(), validation=3.5, objective="mlm", half=0.05):
    """A group with a loss on its training rows and a curve of its validation loss."""
    entries = [{"step": 10.0 * i, "eval_loss": loss} for i, loss in enumerate(curve)]
    parts = {
        "train": train and held_out(train),
        "validation": held_out(validation),
        "curve": entries,
    }
    return Group(objective, loss=(validation, half), cell=parts)


def test_training_text_learned_by_heart():
    rising = ablation({"few": memorizing(2.9, [4.0, 3.4, 3.45, 3.5])})
    text = evidence(UNIFORM, rising)
    assert "0.600 [0.529, 0.671] above" in text and "fell to 3.400 and rose to 3.500" in text
    wider = ablation({"few": memorizing(2.9), "many": memorizing(3.45)})
    text = evidence(UNIFORM, wider)
    assert "few is 0.600" in text and "that of many 0.050 [-0.021, 0.121]" in text


@pytest.mark.parametrize(
    "groups, columns",
    [
        ({"few": memorizing(2.9, [4.0, 3.6, 3.5])}, None),  # a gap, still falling, no others
        ({"few": memorizing(2.9, [4.0, 3.5, 3.51])}, None),  # a wobble at the end
        ({"few": memorizing(3.45, [4.0, 3.4, 3.45, 3.5])}, None),  # rises without a gap
        ({"few": memorizing(2.9, [4.0, 3.4, 3.45, 3.5], half=1.0)}, None),  # within the noise
        ({"few": memorizing(None, [4.0, 3.4, 3.45, 3.5])}, None),
        ({"few": memorizing(3.44, [4.0, 3.4, 3.45, 3.5], half=0.01)}, None),  # a small gap
        ({"few": memorizing(2.9, [4.0, 3.4, 3.4, 3.5])}, None),  # one point is no rise
        ({"few": memorizing(2.9, half=0.01), "many": memorizing(2.95, half=0.01)}, None),
        ({"few": memorizing(3.2), "many": memorizing(3.35, half=0.15)}, None),
        ({"few": memorizing(2.9), "many": memorizing(3.45)}, [LOSS_APART]),
        ({"few": memorizing(2.9), "many": memorizing(3.45, objective="clm")}, None),
        # One that has learned less has a smaller gap, and that says nothing.
        ({"few": memorizing(2.9), "many": memorizing(5.95, validation=6.0)}, None),
    ],
)
def test_nothing_learned_by_heart(groups, columns):
    assert not found(UNIFORM, ablation(groups, columns))


def test_one_seed_of_two_that_rises_is_not_enough():
    parts = [
        memorizing(2.9, [4.0, 3.4, 3.45, 3.5]).cells[0],
        memorizing(2.9, [4, 3.6, 3.5]).cells[0],
    ]
    assert not found(UNIFORM, ablation({"few": Group(seeds=2, cell=parts)}))
    assert found(UNIFORM, ablation({"few": Group(seeds=2, cell=[parts[0]] * 2)}))


@pytest.mark.parametrize(
    "share, documents, there",
    [(0.31, 4000, True), (0.14, 4000, False), (0.31, 50, False), (None, 4000, False)],
)
def test_near_duplicates(share, documents, there):
    data = [
        {"cells": ["a"], "documents": documents, "near_duplicates": share, "sources": {"wiki": 9}}
    ]
    results = ablation({"a": Group()}, data=data)
    if there:
        assert "31.0% of the 4000 documents of a" in evidence(UNIFORM, results)
    else:
        assert not found(UNIFORM, results)


def sources(unseen, columns=None, half=0.02, objective="mlm", more=0):
    """One group that read wiki alone, with a loss on code, and one that read both."""
    groups = {
        "wiki": Group(loss=(3.0, half), cell={"by_source": {"wiki": 3.0, "code": unseen}}),
        "both": Group(objective, loss=(3.0, half), cell={"by_source": {"wiki": 3.1, "code": 2.9}}),
    }
    data = [
        {"cells": [f"{name},seed=0"], "documents": 9, "near_duplicates": None, "sources": own}
        for name, own in (("wiki", {"wiki": 10, "code": more}), ("both", {"wiki": 5, "code": 5}))
    ]
    return ablation(groups, columns, data=data)


def test_a_source_that_was_not_seen():
    text = evidence(UNIFORM, sources(4.1))
    assert "trained on wiki alone and has a loss of 4.100 on code" in text
    assert "1.200 above the 2.900 of both" in text
    for near in (
        sources(3.1),
        sources(3.2, half=0.3),
        sources(None),
        sources(4.1, [LOSS_APART]),
        sources(4.1, objective="clm"),
        sources(4.1, more=5),
        sources(4.1) | {"data": []},
    ):
        assert not found(UNIFORM, near)


FELL = "loss_fell_downstream_did_not"


def watched(losses, scores, half=0.02, task_key=SST2, seeds=1):
    """A group with a curve of its loss and a task; the first half is alike in all."""
    early = [{"step": 10.0 * i, "eval_loss": 6.0 - i, "task/sst2": 0.5} for i in range(3)]
    late = [
        {"step": 60.0 + 10 * i, "eval_loss": loss, "task/sst2": score}
        for i, (loss, score) in enumerate(zip(losses, scores, strict=True))
    ]
    cells = {"curve": early + late}
    return Group(seeds=seeds, tasks={task_key: (0.7, half)}, cell=cells)


def test_the_loss_fell_and_the_task_did_not_rise():
    text = evidence(FELL, ablation({"a": watched([3.5, 3.3, 3.2], [0.7, 0.71, 0.69])}))
    assert "fell from 3.500 to 3.200" in text and "from 0.700 to 0.690" in text
    assert "0.040 wide" in text
    for name in ("sst2", "sst2/finetune"):
        assert found(FELL, ablation({"a": watched([3.5, 3.3, 3.2], [0.7] * 3, task_key=name)}))


@pytest.mark.parametrize(
    "group",
    [
        watched([3.5, 3.3, 3.2], [0.7, 0.72, 0.75]),  # it rose
        watched([3.5, 3.3, 3.2], [0.7, 0.75, 0.7]),  # and fell back
        watched([3.5, 3.49, 3.48], [0.7] * 3),  # the loss hardly fell
        watched([3.5, 3.3, 3.2], [0.2] * 3, half=0.2),  # nothing could be seen
        watched([3.5, 3.3, 3.2], [0.7] * 3, half=0.0),
        watched([3.5, 3.3, 3.2], [0.98] * 3),  # no room to rise
        watched([3.5, 3.2], [0.7] * 2),  # two points are no curve
        watched([3.5, 3.3, 3.2], [None] * 3),
        watched([None] * 3, [0.7] * 3),
        watched([3.5, 3.3, 3.2], [0.7] * 3, task_key="other/probe"),
    ],
)
def test_the_loss_fell_and_nothing_is_said(group):
    assert not found(FELL, ablation({"a": group}))


def test_the_loss_fell_alone_in_every_seed_or_not():
    flat, rose = (watched([3.5, 3.3, 3.2], scores) for scores in ([0.7] * 3, [0.7, 0.75, 0.8]))
    tasks = {SST2: (0.7, 0.02)}
    two = Group(seeds=2, tasks=tasks, cell=flat.cells * 2)
    assert "likewise in 2 seeds" in evidence(FELL, ablation({"a": two}))
    one = Group(seeds=2, tasks=tasks, cell=flat.cells + rose.cells)
    assert not found(FELL, ablation({"a": one}))


def probed(*probes, seeds=1):
    """A group with so many probes."""
    tasks = {f"task{i}/probe": task(0.8, probe=probe) for i, probe in enumerate(probes)}
    return ablation({"a": Group(cell={"tasks": tasks}, seeds=seeds)})


def test_a_probe_that_leaks():
    text = evidence("leak", probed(shuffled(0.60), shuffled(0.5)))
    assert "a has 0.600 [0.580, 0.620]" in text and "chance is 0.500" in text
    assert "of 2 probes" in text
    assert findings(probed(shuffled(0.60)))[0].kind == "leak"
    assert "task0/probe" in found("leak", probed(shuffled(0.60)))[0].title


@pytest.mark.parametrize(
    "results",
    [
        probed(shuffled(0.51)),
        probed(shuffled(0.40)),  # below chance
        probed(shuffled(0.505, half=0.001)),  # too little to matter
        probed(shuffled(0.525), *[shuffled(0.5)] * 39),  # one of forty, by luck
        probed(shuffled(float("nan"))),
        probed(None),
    ],
)
def test_no_probe_leaks(results):
    assert not found("leak", results)
