"""One window: what a judge hands its policy, in how many rounds, and that it can resume."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from curate.influence import Probing, score_window
from curate.rules import State
from curate.selection import Array
from curate.selection.judge import Judge, Judged, Rounds
from curate.selection.policies import Evidence, LookAhead, Offer, SmallLoss
from curate.selection.policies.look_ahead import centered_ranks
from curate.trajectory import Step, record
from tests import tiny


@dataclass(frozen=True)
class Noting:
    """A policy that keeps what it was shown; each round's weights are those before, and 0.1."""

    needs: Evidence = Evidence.INFLUENCE
    rounds: int = 1
    offers: list[Offer] = field(default_factory=list)

    def values(self, offer: Offer) -> Array:
        self.offers.append(offer)
        return offer.weights + 0.1


def judge(policy: LookAhead | SmallLoss | Noting, **options: object) -> Judge:
    return Judge(tiny.task(), tiny.rule_for("adamw")[0], policy, tiny.targets(), **options)  # type: ignore[arg-type]


def start(judging: Judge) -> State:
    return tiny.start(judging.task, judging.rule)


def unweighted(count: int) -> list[Step]:
    return [step.reweight(torch.ones_like(step.weights)) for step in tiny.steps(count)]


def test_look_ahead_without_a_target_is_refused() -> None:
    task, rule = tiny.task(), tiny.rule_for("adam")[0]
    with pytest.raises(ValueError, match="needs at least one target"):
        Judge(task, rule, LookAhead())
    Judge(task, rule, SmallLoss())


def test_a_policy_is_shown_losses_and_influences_of_its_step() -> None:
    noting = Noting()
    judging = judge(noting)
    state, steps = start(judging), tiny.steps(3)
    judged = judging.judge(state, steps)
    recording = record(judging.task, judging.rule, state, steps, snapshots=64)
    scores = score_window(judging.task, judging.rule, recording, judging.targets)
    for offer, step, losses, influences in zip(
        noting.offers, steps, recording.losses, scores.influences, strict=True
    ):
        assert offer.rows.tolist() == step.rows.tolist()
        np.testing.assert_array_equal(offer.weights, step.weights.numpy())
        np.testing.assert_allclose(offer.losses, losses, rtol=1e-12)
        np.testing.assert_allclose(offer.influences, influences, rtol=1e-9, atol=1e-14)
        assert offer.target_weights is not None
        assert offer.target_weights.tolist() == [1, 1]
    assert torch.equal(judged.final.theta, recording.final.theta)


def test_losses_and_influences_are_divided_by_what_rows_count_for() -> None:
    plain, divided = Noting(), Noting()
    per = np.arange(1.0, 25.0)
    steps = tiny.steps(2)
    for policy, column in ((plain, None), (divided, per)):
        judging = judge(policy, per=column)
        judging.judge(start(judging), steps)
    for one, other in zip(plain.offers, divided.offers, strict=True):
        assert one.losses is not None
        assert one.influences is not None
        np.testing.assert_allclose(other.losses, one.losses / per[one.rows])
        np.testing.assert_allclose(other.influences, one.influences / per[one.rows])


def test_a_policy_of_losses_goes_through_no_target() -> None:
    noting = Noting(Evidence.LOSS)
    judging = judge(noting)
    judged = judging.judge(start(judging), tiny.steps(2))
    assert judged.scores is None
    assert all(offer.influences is None for offer in noting.offers)


@pytest.mark.parametrize("policy", [LookAhead(), LookAhead(3), SmallLoss()], ids=repr)
def test_ticks_are_counted(policy: LookAhead | SmallLoss) -> None:
    judging, ticks = judge(policy), [0]

    def tick() -> None:
        ticks[0] += 1

    judging.judge(start(judging), tiny.steps(4), on_step=tick)
    assert ticks[0] == judging.ticks(4)


def test_rounds_are_the_window_again_at_the_weights_before() -> None:
    """Two rounds by hand: score, move the weights by rank, score at the new weights."""
    judging, once = judge(LookAhead(rounds=2)), judge(LookAhead())
    begin, steps = start(judging), unweighted(3)
    first = once.judge(begin, steps)
    weights = [1 + 0.5 * centered_ranks(values) for values in first.values]
    again = once.judge(
        begin, [s.reweight(torch.from_numpy(w)) for s, w in zip(steps, weights, strict=True)]
    )
    judged = judging.judge(begin, steps)
    for k in range(3):
        ranks = centered_ranks(again.values[k] / weights[k])
        expected = np.clip(weights[k] + 0.5 * ranks, 0.02, 2)
        np.testing.assert_allclose(judged.values[k], expected, atol=1e-5)
        assert judged.scores is not None
        assert first.scores is not None
        assert torch.equal(judged.scores.influences[k], first.scores.influences[k])


def same(one: Judged, other: Judged) -> bool:
    assert one.scores is not None
    assert other.scores is not None
    return (
        torch.equal(one.final.theta, other.final.theta)
        and all(map(np.array_equal, one.values, other.values))
        and all(map(torch.equal, one.losses, other.losses))
        and all(map(torch.equal, one.scores.influences, other.scores.influences))
        and all(map(torch.equal, one.scores.derivatives, other.scores.derivatives))
        and one.scores.probes == other.scores.probes
    )


@pytest.mark.parametrize("after", [1, 2])
def test_a_window_resumes_after_any_round(after: int) -> None:
    judging = judge(LookAhead(rounds=3))
    begin, steps = start(judging), unweighted(3)
    noted: list[Rounds] = []
    whole = judging.judge(begin, steps, probing=Probing(2, 5), on_round=noted.append)
    assert [rounds.done for rounds in noted] == [1, 2]
    rounds = judging.restored(noted[after - 1].saved(), steps)
    assert rounds.probing == Probing(2, 5)
    fresh = replace(judging, differences=type(judging.differences)())
    resumed = fresh.judge(begin, steps, rounds=rounds)
    assert same(whole, resumed)
