"""Recording and replaying: bit for bit, within the snapshot budget, at optimal cost."""

import gc
import weakref
from dataclasses import replace
from functools import cache

import pytest
import torch

from curate.errors import NonFiniteError
from curate.rules import State
from curate.trajectory import Recording, checkpoints, chunk_gradient, record, recording, replay
from curate.trajectory.tapes import counting, tape_size
from tests import tiny


def states_of_a_plain_loop(dropout: float, count: int) -> list[State]:
    task = tiny.task(dropout=dropout)
    rule, lrs = tiny.rule_for("adamw")
    state = tiny.start(task, rule)
    states = [state]
    for step in tiny.steps(count, lrs):
        state = replay(task, rule, state, [step])
        states.append(state)
    return states


@pytest.mark.parametrize("snapshots", [1, 2, 3, 5, 13, 50])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_states_come_back_bit_for_bit(snapshots: int, dropout: float) -> None:
    task = tiny.task(dropout=dropout)
    rule, lrs = tiny.rule_for("adamw")
    expected = states_of_a_plain_loop(dropout, 13)
    made = record(task, rule, tiny.start(task, rule), tiny.steps(13, lrs), snapshots=snapshots)
    order = []
    for k, state in made.backwards():
        order.append(k)
        assert state.step == k
        for ours, theirs in zip(state.tensors(), expected[k].tensors(), strict=True):
            assert torch.equal(ours, theirs)
    assert order == list(range(12, -1, -1))
    assert torch.equal(made.final.theta, expected[13].theta)


@cache
def fewest_redone(length: int, snapshots: int) -> int:
    """Forward steps needed to reverse `length` steps, by dynamic programming."""
    if length <= 1:
        return 0
    if snapshots == 1:
        return length * (length - 1) // 2
    return min(
        m + fewest_redone(length - m, snapshots - 1) + fewest_redone(m, snapshots)
        for m in range(1, length)
    )


def count_redone(monkeypatch: pytest.MonkeyPatch, length: int, snapshots: int) -> tuple[int, int]:
    """(forward steps in all, most states kept at once), with arithmetic taken out."""
    calls = 0

    def pretend(task: object, rule: object, state: State, *_: object) -> tuple[State, object]:
        nonlocal calls
        calls += 1
        return State(state.theta, {}, state.step + 1), torch.zeros(1)

    monkeypatch.setattr(recording, "forward_step", pretend)
    task = tiny.task()
    steps = tiny.steps(1) * length
    start = State(torch.zeros(1), {}, 0)
    made: Recording = record(task, None, start, steps, snapshots=snapshots)  # type: ignore[arg-type]
    most = len(made._kept)
    for k, state in made.backwards():
        assert state.step == k
        most = max(most, len(made._kept) + 1)  # + the one just handed out
    return calls, most


@pytest.mark.parametrize("snapshots", [1, 2, 3, 4, 7])
def test_reversal_costs_what_dynamic_programming_says(
    monkeypatch: pytest.MonkeyPatch, snapshots: int
) -> None:
    for length in [1, 2, 3, 4, 5, 8, 13, 21, 40]:
        calls, most = count_redone(monkeypatch, length, snapshots)
        # the target comes after the last step: one more place to come back from
        assert calls == fewest_redone(length + 1, snapshots)
        assert most <= snapshots + 1


def test_split_of_one_leaves_room_on_both_sides() -> None:
    for snapshots in range(2, 8):
        for length in range(2, 60):
            assert 1 <= checkpoints.split(length, snapshots) <= length - 1


def test_learning_rate_too_large_is_named_with_step_and_row() -> None:
    task = tiny.task()
    rule, _ = tiny.rule_for("sgd")
    with pytest.raises(NonFiniteError, match=r"step \d+: the loss of row \d+ is (nan|inf)"):
        record(task, rule, tiny.start(task, rule), tiny.steps(8, (1e200,)), snapshots=2)


def test_parameter_that_overflows_is_named() -> None:
    task = tiny.task()
    rule, _ = tiny.rule_for("sgd")
    with pytest.raises(NonFiniteError, match=r"step 100: parameter 0.weight is no longer finite"):
        record(
            task, rule, tiny.start(task, rule), tiny.steps(1, (float("inf"),)),
            snapshots=2, first_step=100,
        )  # fmt: skip


def test_caller_keeps_its_rng_and_its_gradients() -> None:
    task = tiny.task(dropout=0.5)
    rule, lrs = tiny.rule_for("adam")
    before = torch.get_rng_state()
    record(task, rule, tiny.start(task, rule), tiny.steps(2, lrs), snapshots=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in task.model.module.parameters())


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    from curate.trajectory import gradient

    task = tiny.task()
    theta = task.model.read()
    whole = gradient(task, theta, tiny.steps(1)[0])
    pieces = gradient(task, theta, tiny.steps(1, micro=4)[0])
    torch.testing.assert_close(whole.mean, pieces.mean, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(whole.losses, pieces.losses)


def test_no_forward_pass_crosses_a_cut() -> None:
    step = replace(tiny.steps(1, size=10)[0], cuts=(3, 7))
    assert [(c.start, c.stop) for c in step.chunks()] == [(0, 3), (3, 7), (7, 10)]
    small = replace(step, micro_batch=2)
    assert [c.stop - c.start for c in small.chunks()] == [2, 1, 2, 2, 2, 1]
    kept = small.keep(torch.tensor([0, 4, 5, 8, 9]))
    assert kept.cuts == (1, 3)
    assert step.keep(torch.tensor([8, 9])).cuts == ()


def test_tapes_are_held_within_their_budget_and_taken_once() -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    start, steps = tiny.start(task, rule), tiny.steps(5, lrs)
    with counting(start.theta) as sizes:
        chunk_gradient(task, start.theta, steps[0], slice(0, 6), differentiable=True)
    one = sum(sizes.values())
    assert one > 0
    for budget, held in ((0, 0), (one - 1, 0), (one, 1), (3 * one + 1, 3), (100 * one, 5)):
        made = record(task, rule, start, steps, snapshots=5, tape_bytes=budget)
        found = [k for k in range(5) if made.take_tape(k) is not None]
        assert found == [*range(5 - held, 5)], budget  # those that the way back comes to first
        assert all(made.take_tape(k) is None for k in range(5))


@pytest.mark.parametrize("sizes", [[6, 6, 3, 3, 3], [3, 3, 3, 6, 6], [3, 6, 3, 6, 3]])
def test_tapes_of_unequal_steps_stay_within_their_budget(sizes: list[int]) -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    start = tiny.start(task, rule)
    rows = torch.arange(sum(sizes)).split(sizes)
    steps = [replace(tiny.steps(1, lrs)[0], rows=r, weights=torch.ones(len(r))) for r in rows]
    bytes_of = [tape_size(task, start.theta, step) for step in steps]
    for budget in range(0, sum(bytes_of) + 100, 100):
        made = record(task, rule, start, steps, snapshots=5, tape_bytes=budget)
        found = [k for k in range(5) if made.take_tape(k) is not None]
        assert sum(bytes_of[k] for k in found) <= budget
        assert found == [*range(5 - len(found), 5)]
    assert len(found) >= 4  # room is made by the size of the step before


def test_tapes_are_freed() -> None:
    """Autograd hooks that hold on to what they are given leak whole graphs."""
    task = tiny.task()
    theta = task.model.read()
    with counting(theta):
        tape = chunk_gradient(task, theta, tiny.steps(1)[0], slice(0, 6), differentiable=True)
    leaf = weakref.ref(tape.theta)
    assert leaf() is not None
    del tape
    gc.collect()
    assert leaf() is None


def test_tapes_change_nothing_that_is_recorded() -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adamw")
    start, steps = tiny.start(task, rule), tiny.steps(5, lrs)
    bare, taped = (
        record(task, rule, start, steps, snapshots=2, tape_bytes=budget) for budget in (0, 2**30)
    )
    assert torch.equal(bare.final.theta, taped.final.theta)
    assert all(torch.equal(a, b) for a, b in zip(bare.losses, taped.losses, strict=True))
