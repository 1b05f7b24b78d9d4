"""Removals followed exactly, against replays and the identity that explains them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

from curate.influence import Probing, Scoring, WindowScores, score_window, size_of, target_gradients
from curate.influence.adjoint import Linearization
from curate.influence.probes import Draw, Probe
from curate.models import Classification, FlatModel
from curate.rules import SGD, Rule, State
from curate.trajectory import Gradient, Step, Task, record, replay
from tests import tiny
from tests.influence.layers import Attentive

MANY = Probing(count=12, seed=3)


def scored(
    task: Task,
    rule: Rule,
    steps: list[Step],
    probing: Probing | None = MANY,
    gradients: int = 0,
    **scoring: Any,
) -> WindowScores:
    made = record(task, rule, tiny.start(task, rule), steps, snapshots=2, gradients=gradients)
    targets = tiny.targets(task.model.dtype)
    return score_window(task, rule, made, targets, scoring=Scoring(**scoring), probing=probing)


def mean_target_loss(task: Task, state: State) -> float:
    losses, _ = target_gradients(task.model, task.objective, tiny.targets(), state.theta)
    return float(losses.mean())


@pytest.mark.parametrize("removal", ["renormalised", "fixed"])
@pytest.mark.parametrize("name", ["sgd-nesterov", "adamw", "muon"])
def test_the_actual_change_is_that_of_a_run_without_the_example(name: str, removal: str) -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for(name, clip=0.3)
    steps = tiny.steps(6, lrs)
    start = tiny.start(task, rule)
    base = mean_target_loss(task, replay(task, rule, start, steps))
    probes = scored(task, rule, steps, removal=removal).probes
    assert len(probes) == 12
    assert len({(probe.step, probe.position) for probe in probes}) > 6
    for probe in probes:
        step = steps[probe.step]
        others = torch.tensor([i for i in range(6) if i != probe.position])
        without = step.keep(others)
        if removal == "fixed":
            share = step.weights[others].sum() / step.weights.sum()
            without = replace(without, scale=float(share))
        again = [*steps[: probe.step], without, *steps[probe.step + 1 :]]
        expected = mean_target_loss(task, replay(task, rule, start, again)) - base
        assert abs(expected) > 1e-7
        assert probe.actual == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("removal", ["renormalised", "fixed"])
@pytest.mark.parametrize("micro", [0, 4], ids=["whole", "micro-batches"])
def test_both_predictions_are_those_of_the_row(micro: int, removal: str) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adamw", clip=0.3)
    steps = tiny.steps(6, lrs, micro=micro)
    linear = scored(task, rule, steps, removal=removal)
    exact = scored(task, rule, steps, removal=removal, jump_bytes=2**20)
    for probed in (linear, exact):
        for probe in probed.probes:
            assert probe.linear != probe.exact
            for value, scores in ((probe.linear, linear), (probe.exact, exact)):
                of_row = float(scores.influences[probe.step].mean(dim=0)[probe.position])
                assert value == pytest.approx(of_row, rel=1e-9, abs=1e-15)
            sizes = size_of(probed.influences[probe.step].mean(dim=0))
            assert probe.size == pytest.approx(float(sizes[probe.position]), rel=1e-12)


def test_terms_of_the_error_are_what_their_names_say() -> None:
    probe = Probe(0, 0, 1.0, linear=0.5, exact=0.2, actual=0.9)
    assert probe.jump == pytest.approx(0.3)
    assert probe.propagation == pytest.approx(0.7)


def test_what_is_followed_telescopes_into_jump_propagation_and_curvature_of_the_target() -> None:
    """The identity of `probe`'s docstring, every term built from whole Jacobians."""
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    steps = tiny.steps(5, lrs)
    start = tiny.start(task, rule)
    states = [replay(task, rule, start, steps[:k]) for k in range(6)]
    sizes = [t.numel() for t in start.tensors()]

    def losses(theta: Tensor, batch: Any) -> Tensor:
        z = functional_call(task.model.module, task.model.unpack(theta), batch["features"])
        return F.cross_entropy(z, batch["label"], reduction="none")

    def moved(flat: Tensor, k: int, weights: Tensor) -> Tensor:
        batch = task.examples.batch(steps[k].rows, task.model.device)
        state = states[k].with_tensors(tuple(flat.split(sizes)))
        g = grad(lambda th: (weights * losses(th, batch)).sum() / weights.sum())(state.theta)
        return torch.cat(rule.update(g, state, steps[k].lrs).tensors())

    def moved_by_rule(flat: Tensor, k: int) -> Tensor:
        """The same with the gradient that was recorded."""
        batch = task.examples.batch(steps[k].rows, task.model.device)
        w, state = weights[k], states[k].with_tensors(tuple(flat.split(sizes)))
        g = grad(lambda th: (w * losses(th, batch)).sum() / w.sum())(states[k].theta)
        return torch.cat(rule.update(g, state, steps[k].lrs).tensors())

    def target(flat: Tensor) -> Tensor:
        means = [
            losses(
                flat.split(sizes)[0], t.examples.batch(torch.arange(10), task.model.device)
            ).mean()
            for t in tiny.targets()
        ]
        return torch.stack(means).mean()

    flat = [torch.cat(state.tensors()) for state in states]
    weights = [step.weights for step in steps]
    jacobians = [jacrev(moved)(flat[k], k, weights[k]) for k in range(5)]
    adjoints = [grad(target)(flat[5])]
    for jacobian in jacobians[::-1]:
        adjoints.insert(0, jacobian.T @ adjoints[0])

    for probe in scored(task, rule, steps).probes:
        t, without = probe.step, weights[probe.step].clone()
        without[probe.position] = 0
        delta = moved(flat[t], t, without) - flat[t + 1]
        jump, of_rule = float(adjoints[t + 1] @ delta), 0.0
        if t < 4:
            linear = jacrev(moved_by_rule)(flat[t + 1], t + 1) @ delta
            after = moved_by_rule(flat[t + 1] + delta, t + 1) - flat[t + 2]
            of_rule = float(adjoints[t + 2] @ (after - linear))
            assert abs(of_rule) > 1e-9
        remainders = []
        for k in range(t + 1, 5):
            after = moved(flat[k] + delta, k, weights[k]) - flat[k + 1]
            remainders.append(float(adjoints[k + 1] @ (after - jacobians[k] @ delta)))
            delta = after
        end = float(target(flat[5] + delta) - target(flat[5]) - adjoints[5] @ delta)
        assert probe.exact == pytest.approx(jump + of_rule, rel=1e-8, abs=1e-14)
        assert probe.actual == pytest.approx(jump + sum(remainders) + end, rel=1e-8, abs=1e-14)
        rest = abs(sum(remainders) - of_rule + end)
        assert probe.propagation == pytest.approx(rest, rel=1e-6, abs=1e-13)
        assert not remainders or max(map(abs, remainders)) > 1e-9


def test_draws_are_in_proportion_to_size() -> None:
    influences = [
        torch.tensor([[3.0, -1.0, 0.0], [1.0, -3.0, 0.0]]),  # mean over the targets: 2, -2, 0
        torch.tensor([[0.5, 8.0], [0.5, -4.0]]),
        torch.tensor([[-0.1, 0.0, 0.2, 0.1], [-0.1, 0.0, 0.2, 0.1]]),
    ]
    draw = Draw(Probing(count=1500, seed=1), tiny.targets())
    offer(draw, influences)
    sizes = np.concatenate([size_of(values.mean(dim=0)).numpy() for values in influences])
    starts = [0, 3, 5]
    counts = np.bincount([starts[r.step] + r.position for r in draw.drawn], minlength=9)
    assert counts.sum() == 1500
    assert chisquare(counts, 1500 * sizes / sizes.sum()).pvalue > 1e-3
    assert chisquare(counts, 1500 * np.full(9, 1 / 9)).pvalue < 1e-9
    for removal in draw.drawn[:20]:
        assert removal.size == pytest.approx(sizes[starts[removal.step] + removal.position])


def test_places_are_drawn_independently() -> None:
    """Two places agree as often as two draws do: a pair of places is no one draw."""
    influences = [torch.ones(1, 2), torch.ones(1, 2)]
    same = 0
    for seed in range(400):
        draw = Draw(Probing(count=2, seed=seed), tiny.targets()[:1])
        offer(draw, influences)
        one, other = draw.drawn
        same += (one.step, one.position) == (other.step, other.position)
    assert abs(same - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)


def offer(draw: Draw, influences: list[Tensor]) -> None:
    """Steps as a window offers them, the last first."""
    nothing = torch.zeros(1)
    for k in range(len(influences) - 1, -1, -1):
        n = influences[k].shape[1]
        step = Step(torch.arange(n), torch.ones(n), (0.1,), 0)
        grad = Gradient(nothing, torch.zeros(n), torch.ones(n))
        at = Linearization(SGD(), State(nothing, {}, 0), step, grad, (nothing[None],))
        draw.offer(k, at, influences[k], influences[k])


def test_influences_of_0_can_be_drawn_all_the_same() -> None:
    draw = Draw(Probing(count=5, seed=0), tiny.targets()[:1])
    offer(draw, [torch.zeros(1, 3), torch.zeros(1, 3)])
    assert len(draw.drawn) == 5
    assert all(removal.size == 0 for removal in draw.drawn)


def test_size_is_half_the_influence_and_half_the_steps_mean() -> None:
    sizes = size_of(torch.tensor([3.0, -1.0, 0.0, 0.0]))
    assert sizes.tolist() == [2.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("jump_bytes", [None, 2**20], ids=["linear", "exact"])
def test_probing_changes_no_influence_and_no_rng(jump_bytes: int | None) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adamw")
    steps = tiny.steps(6, lrs)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    plain, probed = (
        scored(task, rule, steps, probing, jump_bytes=jump_bytes) for probing in (None, MANY)
    )
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert (len(plain.probes), len(probed.probes)) == (0, 12)
    for name in ("influences", "derivatives", "sizes"):
        pairs = zip(getattr(plain, name), getattr(probed, name), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(plain.target_losses, probed.target_losses)


def test_the_same_seed_draws_the_same_and_another_seed_others() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    steps = tiny.steps(6, lrs)
    first, same = (scored(task, rule, steps).probes for _ in range(2))
    assert first == same
    assert scored(task, rule, steps, replace(MANY, seed=4)).probes != first


@pytest.mark.parametrize("gradients", [0, 9], ids=["none", "kept"])
@pytest.mark.parametrize("attention", [False, True], ids=["mlp", "attention"])
def test_what_weighs_nothing_changes_nothing_when_it_is_left_out(
    attention: bool, gradients: int
) -> None:
    """Bit for bit, in float32: both ends of a difference are computed in the same way."""
    float32 = torch.float32
    task = tiny.task(dtype=float32)
    if attention:
        task = Task(FlatModel(Attentive()), Classification(), tiny.examples(dtype=float32))
    rule, lrs = tiny.rule_for("adamw")
    weightless = [step.reweight(step.weights.float()) for step in tiny.steps(4, lrs)]
    for step in weightless:
        step.weights[1:5] = 0
    scores = scored(task, rule, weightless, replace(MANY, count=24), gradients)
    nothing = [probe for probe in scores.probes if probe.position in range(1, 5)]
    assert nothing
    assert [probe.actual for probe in nothing] == [0.0] * len(nothing)
