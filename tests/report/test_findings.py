import pytest

from jaxpretrain.report.findings import DETECTORS, findings
from support.findings_results import (
    LOSS_APART,
    SST2,
    Group,
    ablation,
    column,
    evidence,
    found,
    held_out,
    interval,
)


def rates(losses, scores=None, key="objective.mask_rate", half=0.02):
    """Groups that differ in the masking rate: losses by rate, and scores."""
    return {
        f"rate={rate}": Group(
            varied={key: rate},
            loss=(loss, half),
            tasks={SST2: (scores[rate], half)} if scores else (),
        )
        for rate, loss in losses.items()
    }


LITTLE, MUCH = "masking_too_little", "masking_too_much"
CURVE = {0.05: 6.09, 0.15: 4.34, 0.3: 3.97, 0.5: 3.96, 0.8: 4.27}


@pytest.mark.parametrize("key", ["objective.mask_rate", "objective.tasks.words.mask_rate"])
def test_masking_too_little_and_too_much(key):
    results = ablation(rates(CURVE, key=key))
    little, much = evidence(LITTLE, results), evidence(MUCH, results)
    assert "6.090 [6.070, 6.110] at 0.05" in little and "best at 0.5" in little
    assert "3.960 [3.940, 3.980]" in little and "2.130" in little
    assert "0.3 within the noise of it" in little
    assert "4.270 [4.250, 4.290] at 0.8" in much and "0.310" in much
    assert key in found(LITTLE, results)[0].advice


def test_masking_that_is_at_its_best_at_one_end():
    results = ablation(rates({0.15: 4.5, 0.3: 4.2, 0.5: 4.0}))
    assert found(LITTLE, results) and not found(MUCH, results)


def test_masking_says_where_the_downstream_prefers_another_rate():
    scores = {0.05: 0.6, 0.15: 0.9, 0.3: 0.8, 0.5: 0.7, 0.8: 0.6}
    results = ablation(rates(CURVE, scores))
    for kind in (LITTLE, MUCH):
        text = evidence(kind, results)
        assert "the held-out loss is best at 0.5, but sst2/probe is 0.900" in text
        assert "against 0.700 [0.680, 0.720] at 0.5" in text
    close = dict.fromkeys(scores, 0.8) | {0.15: 0.82}
    assert "but sst2/probe" not in evidence(LITTLE, ablation(rates(CURVE, close)))


@pytest.mark.parametrize(
    "results",
    [
        ablation(rates({0.15: 4.00, 0.3: 3.98, 0.5: 4.01})),  # within the noise
        ablation(rates({0.15: 4.005, 0.3: 4.0, 0.5: 4.005}, half=1e-4)),  # real, and too small
        ablation(rates(CURVE), columns=[LOSS_APART]),
        ablation(rates(CURVE), columns=[]),
        ablation(rates({0.15: 4.0})),
        ablation(rates(CURVE, key="objective.eval_mask_rate")),
        ablation(rates(CURVE, half=0.0)),  # no measure of the noise
        ablation(rates({0.15: float("nan"), 0.3: 3.0, 0.5: float("nan")})),
    ],
)
def test_no_masking_rate_is_called_bad(results):
    assert not found(LITTLE, results) and not found(MUCH, results)


def test_masking_compares_only_groups_that_differ_in_the_rate_alone():
    groups = {
        "small": Group(varied={"objective.mask_rate": 0.15, "model.layers": 2}, loss=(4.0, 0.02)),
        "large": Group(varied={"objective.mask_rate": 0.3, "model.layers": 4}, loss=(3.0, 0.02)),
    }
    assert not found(LITTLE, ablation(groups))


def test_a_paired_difference_counts_where_intervals_overlap():
    results = ablation(rates({0.15: 4.03, 0.3: 4.0}), columns=[column("loss", best="rate=0.3")])
    assert "4.030" in evidence(LITTLE, results)


SUIT = "objective_does_not_suit"


def families(mlm, clm, half=0.02, **others):
    """Groups of two objectives and their scores at a task."""
    return {
        name: Group(name, {"objective.name": name}, tasks={SST2: (score, half)})
        for name, score in {"mlm": mlm, "clm": clm, **others}.items()
    }


def test_a_family_of_objectives_that_suits_a_task_better():
    text = evidence(SUIT, ablation(families(0.85, 0.7, span_mlm=0.8, fim=0.65)))
    assert "mlm has 0.850 [0.830, 0.870] against 0.700 [0.680, 0.720] of clm" in text
    (finding,) = found(SUIT, ablation(families(0.85, 0.7)))
    assert "two-sided" in finding.title and "both sides" in finding.advice
    (finding,) = found(SUIT, ablation(families(0.7, 0.85)))
    assert "causal" in finding.title and "left-to-right" in finding.advice
    assert "clm has 0.850" in finding.evidence


@pytest.mark.parametrize(
    "results",
    [
        ablation(families(0.75, 0.73)),
        ablation(families(0.755, 0.75, half=0.001)),
        ablation(families(0.85, 0.7, fim=0.84)),  # the family is as good, if clm is not
        ablation(families(0.85, 0.7), columns=[column(SST2, comparable=False)]),
        ablation(families(0.85, 0.7), columns=[column("loss")]),
        ablation({"mlm": families(0.85, 0.7)["mlm"]}),
        ablation({"a": Group("mlm", tasks={SST2: (0.85, 0.02)}), "b": Group("clm")}),
    ],
)
def test_no_family_suits_better(results):
    assert not found(SUIT, results)


def test_a_held_out_accuracy_is_no_task():
    results = ablation({name: Group(name) for name in ("mlm", "clm")}, [column("accuracy")])
    for row, accuracy in zip(results["rows"], (0.4, 0.6), strict=True):
        row["values"]["accuracy"] = interval(accuracy)
    assert not found(SUIT, results)


def test_families_are_compared_at_the_same_size():
    groups = families(0.85, 0.7)
    groups["mlm"].varied |= {"model.layers": 8}
    groups["clm"].varied |= {"model.layers": 2}
    assert not found(SUIT, ablation(groups))


def test_an_objective_at_chance_at_what_another_learns():
    groups = {
        "nsp": Group("nsp", tasks={SST2: (0.51, 0.02)}),
        "mlm": Group("mlm", tasks={SST2: (0.80, 0.02)}),
    }
    (finding,) = found(SUIT, ablation(groups))
    assert finding.title == "nsp stays at chance"
    for number in ("chance 0.500", "0.800 [0.780, 0.820]", "0.510 [0.490, 0.530]"):
        assert number in finding.evidence


@pytest.mark.parametrize(
    "nsp, mlm, chance",
    [
        ((0.53, 0.02), (0.80, 0.02), 0.5),  # above chance
        ((0.51, 0.02), (0.54, 0.05), 0.5),  # none is
        ((0.45, 0.02), (0.51, 0.02), 0.5),  # both are, one is below it
        ((0.51, 0.06), (0.56, 0.03), 0.5),  # within the noise
        ((0.51, 0.02), (0.80, 0.02), None),
    ],
)
def test_no_objective_is_at_chance(nsp, mlm, chance):
    groups = {
        "nsp": Group("nsp", tasks={SST2: nsp}),
        "mlm": Group("mlm", tasks={SST2: mlm}),
    }
    assert not found(SUIT, ablation(groups, columns=[column(SST2, chance=chance)]))
    groups["nsp"].tasks = {SST2: (0.51, 0.02)}
    groups["nsp"].objective = "mlm"  # and with one objective only
    assert not found(SUIT, ablation(groups))


FELL = "loss_fell_downstream_did_not"


def pair(low, high, columns=None, objectives=("mlm", "mlm"), half=0.02):
    """Two groups, each with its loss and its score."""
    groups = {
        name: Group(objective, loss=(numbers[0], half), tasks={SST2: (numbers[1], half)})
        for name, objective, numbers in zip("ab", objectives, (low, high), strict=True)
    }
    return ablation(groups, columns)


def test_a_lower_loss_with_a_lower_score():
    text = evidence(FELL, pair((3.0, 0.7), (3.3, 0.8)))
    assert "a has 3.000 [2.980, 3.020] against 3.300" in text
    assert "b has 0.800 [0.780, 0.820] against 0.700" in text
    for near in (
        pair((3.0, 0.8), (3.3, 0.7)),
        pair((3.0, 0.78), (3.3, 0.8)),
        pair((3.28, 0.7), (3.3, 0.8)),
        pair((3.0, 0.7), (3.3, 0.8), [LOSS_APART, column(SST2)]),
        pair((3.0, 0.7), (3.3, 0.8), [column("loss"), column(SST2, comparable=False)]),
        pair((3.0, 0.7), (3.3, 0.8), [column("loss")]),
        pair((3.0, 0.7), (3.3, 0.8), objectives=("mlm", "clm")),
        pair((3.0, 0.7), (3.3, 0.8), half=0.0),
    ):
        assert not found(FELL, near)


NOTHING, ONE_SEED = "nothing_decided", "one_seed"


def test_nothing_is_decided():
    results = pair((3.0, 0.70), (3.01, 0.71), half=0.03)
    text = evidence(NOTHING, results)
    assert "loss is between 3.000 and 3.010, with intervals up to 0.060 wide" in text
    assert "sst2/probe is between 0.700 and 0.710" in text
    (finding,) = found(NOTHING, results)
    assert "1 seed)" in finding.advice and "100000 tokens" in finding.advice
    assert not found(ONE_SEED, results)  # it is said there


@pytest.mark.parametrize(
    "results",
    [
        pair((3.0, 0.7), (3.3, 0.71)),  # the losses differ
        pair((3.0, 0.7), (3.01, 0.71), [column("loss", best="a"), column(SST2)]),
        pair((3.0, 0.7), (3.01, 0.71), [LOSS_APART]),
        ablation({"a": Group()}),
        ablation({"a": Group(), "b": Group(loss=None)}),
    ],
)
def test_something_is_decided_or_nothing_was_compared(results):
    assert not found(NOTHING, results)


def test_one_seed_each():
    groups = {"a": Group(loss=(3.0, 0.02)), "b": Group(loss=(3.3, 0.02))}
    assert "Each of the 2 groups" in evidence(ONE_SEED, ablation(groups))
    groups["b"].seeds, groups["b"].cells = 2, [{}, {}]
    assert not found(ONE_SEED, ablation(groups))
    assert not found(ONE_SEED, ablation({"a": Group()}))


def test_an_ablation_without_cells_and_one_without_numbers():
    assert findings(ablation({})) == []
    nothing = Group(
        "mixture",
        {"objective.mask_rate": None, "objective.tasks.a.mask_rate": 0.15},
        loss=None,
        cell={
            "curve": [{"step": 1.0, "eval_loss": None, "task/sst2": None}] * 4,
            "balance": [{"step": 1.0, "gradient_share/a": None}] * 9,
            "by_source": {"wiki": None},
            "train": held_out(None),
        },
    )
    assert findings(ablation({"a": nothing, "b": nothing})) == []


def test_cells_that_are_not_done():
    results = ablation(rates(CURVE, dict.fromkeys(CURVE, 0.8)))
    bare = results | {"cells": {}, "missing": list(results["cells"])}
    assert {finding.kind for finding in findings(bare)} == {LITTLE, MUCH}


def test_every_detector_is_called_once():
    assert len(set(DETECTORS)) == len(DETECTORS)
