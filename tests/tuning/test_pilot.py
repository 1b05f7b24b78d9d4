"""What a pilot shows, against the selector's own proxy and plain training."""

from dataclasses import replace

import pytest
import torch

from curate.influence import ErrorProxy, Scoring, expected_error, score_window
from curate.rules import AdamW
from curate.selection.judge import Judge
from curate.selection.policies import LookAhead
from curate.trajectory import Step, record, replay
from curate.tuning.grid import PROBING, looked_at
from curate.tuning.pilot import View, run_pilot
from tests import tiny

T = 12


def setting() -> tuple[Judge, list[Step]]:
    judge = Judge(tiny.task(), AdamW(), LookAhead(4), tiny.targets(), snapshots=T)
    return judge, tiny.steps(T)


def test_a_pilot_trains_on_everything_and_looks_ahead_from_where_it_is() -> None:
    """Its views are those of the same windows recorded and scored from states of plain training."""
    judge, steps = setting()
    start, ticks = tiny.start(judge.task, AdamW()), list[int]()
    end, views = run_pilot(judge, start, steps, [1, 4, T], 0.4, lambda: ticks.append(1))
    assert torch.equal(end.theta, replay(judge.task, AdamW(), start, steps).theta)
    assert len(ticks) == T
    for view, horizon in zip(views, [1, 4, T], strict=True):
        proxy = ErrorProxy(PROBING, exact=False)
        for window in looked_at(T, horizon, 0.4):
            state = replay(judge.task, AdamW(), start, steps[: window.start])
            own = steps[window.start : window.stop]
            probing = proxy.plan(own, 20)
            recording = record(judge.task, AdamW(), state, own, snapshots=T)
            scores = score_window(judge.task, AdamW(), recording, judge.targets, probing=probing)
            proxy.enter(window.start, own, scores, 20)
        expected = expected_error(proxy.windows())
        assert view.horizon == horizon
        assert view.probes == expected["probes"] > 0
        for name in ("signal", "error", "jump", "propagation"):
            assert getattr(view, name) == pytest.approx(expected[name], rel=1e-5)


def test_the_exact_jump_has_no_error_of_the_jump() -> None:
    judge, steps = setting()
    exact = Judge(
        judge.task, judge.rule, judge.policy, judge.targets, Scoring(jump_bytes=2**24), snapshots=T
    )
    start = tiny.start(judge.task, AdamW())
    linear = run_pilot(judge, start, steps, [2], 0.9)[1][0]
    jumped = run_pilot(exact, start, steps, [2], 0.9)[1][0]
    assert jumped.error < linear.error


def test_a_horizon_that_diverges_is_lost_and_the_others_are_not() -> None:
    judge, steps = setting()
    start = tiny.start(judge.task, AdamW())
    steps[11] = replace(steps[11], weights=torch.full((6,), torch.nan))
    first, whole = run_pilot(judge, start, steps, [4, T], 0.4)[1]
    assert (first.failure, first.distrust(1e9)) == (None, None)
    assert whole.failure is not None
    assert "step 11" in whole.failure
    assert whole.distrust(1e9) == whole.failure


@pytest.mark.parametrize(
    ("signal", "error", "trusted"), [(1.0, 0.4, True), (1.0, 0.6, False), (0.0, 0.0, True)]
)
def test_what_is_trusted_is_known_to_within_a_share_of_its_size(
    signal: float, error: float, trusted: bool
) -> None:
    reason = View(4, 3, signal, error, 0.0, 0.0).distrust(0.5)
    assert (reason is None) is trusted
    if reason is not None:
        assert (
            reason == "influences of 1 are expected to be off by 0.6, more than 0.5 of their size"
        )
