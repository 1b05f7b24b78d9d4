"""One driver at every horizon."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from curate.influence import Scoring, score_window, target_losses
from curate.rules import SGD, State
from curate.selection.budget import Budget
from curate.selection.driver import Decided, Selector
from curate.selection.effort import FIRST_STEPS, Pace
from curate.selection.judge import Judge
from curate.selection.policies import LookAhead, Policy, Random, SmallLoss
from curate.trajectory import Step, record, replay
from tests import tiny


def selector(
    horizon: int,
    keep: float = 1.0,
    *,
    policy: Policy | None = None,
    snapshots: int = 64,
    **options: Any,
) -> Selector:
    task = tiny.task(dropout=0.2)
    rule, _ = tiny.rule_for("adamw")
    judge = Judge(task, rule, policy or LookAhead(), tiny.targets(), snapshots=snapshots)
    return Selector(judge, horizon=horizon, **{"budget": Budget(fraction=keep)} | options)


def start(chosen: Selector) -> State:
    return tiny.start(chosen.judge.task, chosen.judge.rule)


def one_epoch(size: int = 2) -> list[Step]:
    """12 steps of 2: every one of the 24 examples once."""
    return tiny.steps(12, size=size)


def run(chosen: Selector, steps: list[Step]) -> np.ndarray:
    influences = chosen.run(start(chosen), steps).influences
    assert influences is not None
    return influences


@pytest.mark.parametrize("horizon", [1, 5, 12])
def test_a_window_equals_the_whole_run_scorer_with_the_target_at_its_end(horizon: int) -> None:
    """Window [a, b) of a K-step run = steps a..b-1 of a whole run that ends at b."""
    steps = one_epoch()
    windowed = run(selector(horizon), steps)
    for first in range(0, 12, horizon):
        end = min(first + horizon, 12)
        whole = run(selector(end), steps[:end])
        rows = torch.cat([step.rows for step in steps[first:end]]).numpy()
        np.testing.assert_allclose(windowed[:, rows], whole[:, rows], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("horizon", [1, 7, 12])
def test_every_horizon_goes_through_one_driver_and_one_policy(horizon: int) -> None:
    chosen = selector(horizon, keep=0.5)
    assert type(chosen.judge.policy) is LookAhead
    scores = chosen.run(start(chosen), tiny.steps(12, size=6))
    assert (scores.seen == 3).all()
    assert scores.influences is not None
    assert np.isfinite(scores.influences).all()


def test_what_became_of_a_window_is_what_training_on_what_was_kept_gives() -> None:
    """Predicted: to first order, so to the learning rate. Realized: by hand."""
    gaps = []
    for lr in (1e-3, 1e-4):
        steps = tiny.steps(6, (lr,), size=6)
        chosen = selector(2, keep=0.5)
        judge = chosen.judge
        targets = [replace(t, weight=w) for t, w in zip(judge.targets, (1.0, 0.25), strict=True)]
        judge = replace(judge, task=tiny.task(), rule=SGD(), targets=targets)
        chosen = replace(chosen, judge=judge)
        task, rule = chosen.judge.task, chosen.judge.rule
        state = tiny.start(task, rule)
        seen: list[tuple[State, Decided]] = []
        found = chosen.run(state, steps, on_window=lambda *w, seen=seen: seen.append(w)).outcomes
        assert [own.first_step for own in found] == [0, 2, 4]
        assert [own.realized is None for own in found] == [False, False, True]
        for own, (before, decided), after in zip(found, seen, seen[1:], strict=False):
            ends, judged = [], decided.judged
            for theta in (replay(task, rule, before, judged.steps).theta, after[0].theta):
                each = target_losses(task.model, task.objective, targets, theta)
                ends.append(float(0.8 * each[0] + 0.2 * each[1]))
            assert own.target_loss == pytest.approx(ends[0], rel=1e-14)
            assert own.realized == pytest.approx(ends[1] - ends[0], rel=1e-9)
            assert own.realized != 0
            assert (own.candidates, own.kept, own.steps) == (12, 6, 2)
            assert judged.scores is not None
            influences = torch.cat(judged.scores.influences, dim=1)
            signal = (0.8 * influences[0] + 0.2 * influences[1]).abs().mean()
            assert own.signal == pytest.approx(float(signal), rel=1e-12)
        assert found[0].realized is not None
        assert found[0].predicted is not None
        gaps.append(abs(found[0].predicted / found[0].realized - 1))
    assert gaps[1] < 0.2 * gaps[0] < 0.02


def test_no_prediction_where_a_step_kept_nothing_and_no_change_where_all_was_kept() -> None:
    steps = tiny.steps(4, size=6)
    chosen = selector(2)
    everything = chosen.run(start(chosen), steps).outcomes
    assert [(own.predicted, own.realized) for own in everything] == [(0.0, 0.0), (0.0, None)]
    picky = replace(chosen, budget=Budget(threshold=2.2))
    found = picky.run(start(chosen), steps).outcomes
    assert None in [own.predicted for own in found]


def test_windows_after_the_first_start_from_what_was_kept() -> None:
    steps = tiny.steps(4, size=6)
    chosen = selector(2, keep=0.5)
    found = run(chosen, steps)
    # by hand: score two steps, keep the best three of each, commit, score the next two
    begin = start(chosen)
    first = score_window(
        chosen.judge.task,
        chosen.judge.rule,
        record(chosen.judge.task, chosen.judge.rule, begin, steps[:2], snapshots=2),
        chosen.judge.targets,
    )
    kept = [
        step.keep(scores.mean(dim=0).topk(3).indices.sort().values)
        for step, scores in zip(steps[:2], first.influences, strict=True)
    ]
    state = replay(chosen.judge.task, chosen.judge.rule, begin, kept)
    second = score_window(
        chosen.judge.task,
        chosen.judge.rule,
        record(chosen.judge.task, chosen.judge.rule, state, steps[2:], snapshots=2),
        chosen.judge.targets,
    )
    expected = np.zeros((2, 24))
    for step, scores in zip(steps, first.influences + second.influences, strict=True):
        expected[:, step.rows.numpy()] += scores.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("budget", [1, 3])
def test_snapshot_budget_changes_no_influence(budget: int) -> None:
    steps = tiny.steps(12, size=6)
    assert np.array_equal(run(selector(12), steps), run(selector(12, snapshots=budget), steps))


@pytest.mark.parametrize("keep", [0.5, 1.0])
@pytest.mark.parametrize("horizon", [1, 5, 12])
@pytest.mark.parametrize(
    "policy",
    [LookAhead(), LookAhead(rounds=3), SmallLoss(), Random(24)],
    ids=lambda p: type(p).__name__,
)
def test_progress_counts_every_tick(policy: Policy, horizon: int, keep: float) -> None:
    chosen = selector(horizon, keep=keep, policy=policy)
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    chosen.run(start(chosen), one_epoch(), tick)
    assert ticks == chosen.ticks(12)


def test_influences_do_not_depend_on_planted_groups_or_strata() -> None:
    steps = one_epoch()
    labels = tiny.examples().labels
    assert labels is not None
    plain = run(selector(12), steps)
    chosen = selector(12, groups=labels.numpy())
    stratified = run(replace(chosen, strata=labels.numpy()), steps)
    assert np.array_equal(plain, stratified)


def test_threshold_may_leave_a_step_empty() -> None:
    chosen = selector(2, budget=Budget(threshold=1e9))
    found = run(chosen, tiny.steps(6, size=6))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("jump_bytes", [None, 2**20], ids=["linear", "exact"])
@pytest.mark.parametrize("horizon", [2, 8])
def test_probing_changes_no_influence_and_nothing_of_what_is_kept(
    horizon: int, jump_bytes: int | None
) -> None:
    steps = tiny.steps(8, size=6)
    found, kept = [], []
    for probing in (0.0, 2.0):
        chosen = selector(horizon, 0.5, probing=probing, policy=LookAhead(rounds=2))
        judge = replace(chosen.judge, scoring=Scoring(jump_bytes=jump_bytes))
        chosen = replace(chosen, judge=judge)
        followed: list[int] = []

        def note(state: State, decided: Decided, own: list[int] = followed) -> None:
            assert decided.judged.scores is not None
            own += [probe.step for probe in decided.judged.scores.probes]

        scores = chosen.run(start(chosen), steps, on_window=note)
        found.append(scores)
        kept.append(chosen.budget.choose(scores.score).kept)
    without, probed = found
    assert without.influences is not None
    assert probed.influences is not None
    assert np.array_equal(without.influences, probed.influences)
    assert np.array_equal(without.score, probed.score)
    assert np.array_equal(kept[0], kept[1])
    assert without.errors is None
    assert not without.windows
    assert probed.errors is not None
    assert sum(window.probes for window in probed.windows) == len(followed) > 0
    assert max(followed) < horizon
    for window in probed.windows:  # of the exact jump's influences, the jump is no error
        same = window.error == pytest.approx(window.propagation)
        assert same == (jump_bytes is not None)
    assert [w.first_step for w in probed.windows] == list(range(0, 8, horizon))


def test_errors_are_expected_of_every_row_offered_and_of_no_other() -> None:
    chosen = selector(4, probing=1.0)
    scores = chosen.run(start(chosen), tiny.steps(3, size=6))  # 18 of the 24
    assert scores.errors is not None
    assert np.array_equal(np.isfinite(scores.errors), scores.seen > 0)
    assert (scores.errors[scores.seen > 0] > 0).all()
    assert (scores.seen == 0).any()


def test_losses_have_no_error_to_expect() -> None:
    chosen = selector(4, policy=SmallLoss(), probing=1.0)
    scores = chosen.run(start(chosen), tiny.steps(4, size=6))
    assert scores.errors is None
    assert not scores.windows


LATER = State(torch.zeros(1), {}, FIRST_STEPS)


def looked(chosen: Selector, *, exactly: bool = False) -> Decided:
    return chosen.look(
        start(chosen)._replace(step=FIRST_STEPS), one_epoch(6)[:1], 0, exactly=exactly
    )


def test_less_effort_is_taken_beside_the_exact_choice_when_that_is_due() -> None:
    chosen = selector(1, 0.5, pace=Pace("fast"))
    first = looked(chosen)
    assert first.effort == "exact"
    assert first.judged.final is not None
    assert first.alike is not None
    shortcut = Pace("fast").shortcut(LATER, 0)
    assert shortcut is not None
    quick = chosen.judge.glance(start(chosen)._replace(step=FIRST_STEPS), one_epoch(6)[0], shortcut)
    (kept,) = chosen.decide(quick).weights
    assert first.alike == np.mean((kept > 0) == (first.weights[0] > 0))


def test_less_effort_alone_says_what_it_does_not_know() -> None:
    chosen = selector(1, 0.5, pace=(pace := Pace("fast")))
    pace._wait = 5
    quick = looked(chosen)
    assert quick.effort == "fast"
    assert quick.alike is None
    assert quick.judged.final is None
    assert quick.realized(start(chosen).theta) is None
    outcome = quick.outcome()
    assert outcome.target_loss is None
    assert outcome.predicted is not None
    assert outcome.kept == 3
    theta = quick.trained(start(chosen)).theta
    (step,) = (quick.kept(0),)
    assert torch.equal(
        theta, replay(chosen.judge.task, chosen.judge.rule, start(chosen), [step]).theta
    )


def test_a_choice_that_has_to_be_exact_takes_no_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = selector(1, 0.5, pace=(pace := Pace("fast")))
    pace._wait = 5
    monkeypatch.setattr(Judge, "glance", None)
    assert looked(chosen, exactly=True).effort == "exact"
