"""The error proxy on made-up probes: its formula, its bias, its cost."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from curate.influence import ErrorProxy, WindowScores
from curate.influence.cost import LEAST, RunShape, removal_passes, scoring_passes
from curate.influence.error_proxy import BORROWED
from curate.influence.probes import Probe
from curate.trajectory import Step
from tests import tiny


def step(rows: Sequence[int]) -> Step:
    return Step(torch.tensor(rows), torch.ones(len(rows)), (0.1,), 0)


TARGETS = tiny.targets()


def window_scores(influences: list[list[float]], probes: list[Probe]) -> WindowScores:
    """One window's scores, on two targets whose mean influences are these."""
    apart = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    by_target = [torch.tensor([values], dtype=torch.float64) + apart for values in influences]
    sizes = [torch.ones(len(values)) for values in influences]
    losses, drifts = torch.tensor([1.0, 3.0], dtype=torch.float64), [0.0] * len(influences)
    return WindowScores(by_target, by_target, sizes, losses, probes, TARGETS, drifts)


def probe(size: float, linear: float, exact: float, actual: float, k: int = 0) -> Probe:
    return Probe(k, 0, size, linear, exact, actual)


# sizes q by hand: (|I| + mean |I|) / 2 within the step
FIRST = [[1.0, -3.0], [2.0, 2.0]]  # q = 1.5, 2.5 | 2, 2; mean |I| = 2
SECOND = [[4.0, 0.0]]  # q = 3, 1; mean |I| = 2
PROBES = [probe(1.5, 1.0, 1.3, 1.6), probe(2.0, 2.0, 2.0, 1.0)]
# |actual - linear| / q: 0.6 / 1.5 = 0.4 and 1 / 2 = 0.5; jump 0.2 and 0; propagation 0.2 and 0.5


def two_windows(*, exact: bool) -> ErrorProxy:
    proxy = ErrorProxy(0.25, exact=exact)
    steps = [step([0, 1]), step([2, 3])]
    proxy.enter(0, steps, window_scores(FIRST, PROBES), 10)
    last = [step([3, 4])]
    proxy.enter(2, last, window_scores(SECOND, [probe(3.0, 4.0, 4.0, 1.0)]), 10)
    return proxy


@pytest.mark.parametrize(("exact", "first", "second"), [(False, 0.9, 1.0), (True, 0.7, 1.0)])
def test_the_ratio_is_the_formula_by_hand(exact: bool, first: float, second: float) -> None:
    """`first` and `second`: the sums of e / q over the probes of each window."""
    proxy = two_windows(exact=exact)
    overall = (8 * first / 2 + 4 * second) / (8 + 4)  # mean ratios, weighted by sums of q
    ratios = [(first + 4 * overall) / (2 + 4), (second + 4 * overall) / (1 + 4)]
    assert BORROWED == 4
    one, two = proxy.windows()
    assert (one.first_step, one.steps, one.probes) == (0, 2, 2)
    assert (two.first_step, two.steps, two.probes) == (2, 1, 1)
    assert one.signal == pytest.approx(2)
    assert two.signal == pytest.approx(2)
    assert one.target_loss == 2
    assert one.error == pytest.approx(2 * ratios[0], rel=1e-12)
    assert two.error == pytest.approx(2 * ratios[1], rel=1e-12)
    rows = proxy.rows(6)
    in_both = (2 * ratios[0] + 3 * ratios[1]) / 2
    expected = [1.5 * ratios[0], 2.5 * ratios[0], 2 * ratios[0], in_both, 1 * ratios[1]]
    np.testing.assert_allclose(rows[:5], expected, rtol=1e-12)
    assert np.isnan(rows[5])


def test_jump_and_propagation_have_ratios_of_their_own() -> None:
    one, two = two_windows(exact=False).windows()
    jump = (8 * 0.2 / 2 + 0) / 12
    propagation = (8 * 0.7 / 2 + 4 * 1) / 12
    assert one.jump == pytest.approx(2 * (0.2 + 4 * jump) / 6)
    assert two.jump == pytest.approx(2 * (0 + 4 * jump) / 5)
    assert one.propagation == pytest.approx(2 * (0.7 + 4 * propagation) / 6)
    assert two.propagation == pytest.approx(2 * (1 + 4 * propagation) / 5)


def test_a_window_without_probes_borrows_the_runs_error() -> None:
    proxy = ErrorProxy(0.25, exact=False)
    proxy.enter(0, [step([0, 1])], window_scores([[2, 2]], [probe(2, 2, 2, 1)]), 4)
    proxy.enter(1, [step([2, 3])], window_scores([[6, 6]], []), 4)
    one, two = proxy.windows()
    assert one.error == pytest.approx(2 * 0.5)
    assert two.error == pytest.approx(6 * 0.5)


def test_probes_of_size_0_and_windows_of_no_influence_divide_by_nothing() -> None:
    proxy = ErrorProxy(0.25, exact=False)
    scores = window_scores([[0, 0]], [probe(0, 0, 0, 0)])
    proxy.enter(0, [step([0, 1])], scores, 4)
    (window,) = proxy.windows()
    assert (window.signal, window.error) == (0, 0)
    assert proxy.rows(2).tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["in proportion", "constant", "against"])
def test_the_mean_error_is_estimated_without_bias_whether_or_not_errors_go_with_size(
    kind: str,
) -> None:
    random = np.random.default_rng(0)
    estimates, influences = [], random.normal(size=(3, 8)) ** 3
    flat = np.abs(influences)
    sizes = (flat + flat.mean(axis=1, keepdims=True)) / 2
    errors = {
        "in proportion": 0.3 * flat,
        "constant": 0.2 + 0 * flat,
        "against": 1 / (1 + flat),
    }[kind] * random.exponential(size=flat.shape)
    steps = [step(range(8 * k, 8 * k + 8)) for k in range(3)]
    chance = (sizes / sizes.sum()).ravel()
    for _ in range(600):
        drawn = random.choice(24, size=3, p=chance)
        probes = []
        for i in drawn:
            size, influence = float(sizes.flat[i]), float(influences.flat[i])
            actual = influence + float(errors.flat[i]) * random.choice([-1, 1])
            probes.append(probe(size, influence, 0, actual))
        proxy = ErrorProxy(0.25, exact=False)
        proxy.enter(0, steps, window_scores(influences.tolist(), probes), 10)
        estimates.append(proxy.windows()[0].error)
        assert proxy.rows(24).mean() == pytest.approx(estimates[-1])
    uncertainty = np.std(estimates) / np.sqrt(600)
    assert abs(np.mean(estimates) - errors.mean()) < 4 * uncertainty
    assert uncertainty < 0.05 * errors.mean()


@pytest.mark.parametrize(("exact", "rounds"), [(False, 1), (False, 4), (True, 1)])
@pytest.mark.parametrize("share", [0.02, 0.25, 1.0])
def test_probes_cost_their_share_of_scoring_over_many_windows(
    share: float, exact: bool, rounds: int
) -> None:
    """In training steps: K - k of a probe, its start, and a third of the targets' gradient."""
    proxy = ErrorProxy(share, exact=exact, rounds=rounds)
    random, steps = np.random.default_rng(0), [step(range(5))] * 4
    spent, scoring, drawn = 0.0, 0.0, 0
    shape = RunShape([1.0] * 4, 4, target_share=20 / 5, exact_jump=exact)
    dearest = removal_passes(shape, 4)
    for window in range(300):
        probing = proxy.plan(steps, 20)
        places = [int(k) for k in random.integers(4, size=probing.count)]
        probes = [probe(1, 1, 1, 1, k) for k in places]
        proxy.enter(window, steps, window_scores([[1] * 5] * 4, probes), 20)
        scoring += rounds * scoring_passes(shape, 4)
        spent += sum(removal_passes(shape, 4 - k) for k in places)
        drawn += len(places)
        if window > 0:
            per_window = share * scoring / (window + 1)
            assert spent <= share * scoring + LEAST * dearest + per_window
    least = share * scoring - dearest
    assert 0.9 * least <= spent <= 1.1 * share * scoring + dearest
    assert drawn


def test_a_short_run_has_a_probe_in_every_window_and_none_for_nothing() -> None:
    steps, counts = [step(range(5))] * 4, []
    proxy = ErrorProxy(1e-9, exact=False)
    for window in range(LEAST + 2):
        counts.append(proxy.plan(steps, 20).count)
        probes = [probe(1, 1, 1, 1, 0)] * counts[-1]
        proxy.enter(window, steps, window_scores([[1] * 5] * 4, probes), 20)
    assert counts == [1] * LEAST + [0, 0]
    assert ErrorProxy(1e-9, exact=False).plan(steps, 20).count == 1
    assert ErrorProxy(0.0, exact=False).plan(steps, 20).count == 0


def test_windows_are_probed_with_seeds_of_their_own_and_the_same_each_time() -> None:
    seeds = []
    for _ in range(2):
        proxy = ErrorProxy(0.25, exact=False, seed=7)
        seeds.append([proxy.plan([step(range(5))] * 4, 20).seed for _ in range(5)])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 5


@pytest.mark.parametrize("windows", [0, 2])
def test_a_proxy_resumes_from_what_was_saved(windows: int) -> None:
    proxy, again = ErrorProxy(0.25, exact=False), ErrorProxy(0.25, exact=False, seed=9)
    steps = [step([0, 1]), step([2, 3])]
    for k in range(windows):
        proxy.plan(steps, 10)
        proxy.enter(2 * k, steps, window_scores(FIRST, PROBES[k:]), 10)
    again.restore(proxy.saved())
    assert again.windows() == proxy.windows()
    np.testing.assert_array_equal(again.rows(6), proxy.rows(6))
    assert again.plan(steps, 10) == proxy.plan(steps, 10)
    if windows:
        assert again.latest() == proxy.latest()
