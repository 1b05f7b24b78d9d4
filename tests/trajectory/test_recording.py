"""Recording and replaying: bit for bit, within the snapshot budget, at optimal cost."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import safetensors.torch
import torch

from curate.errors import NonFiniteError
from curate.rules import Rule, State
from curate.trajectory import Disk, gradient, record, recording, replay
from tests import tiny
from tests.trajectory.test_checkpoints import fewest_redone


def states_of_a_plain_loop(dropout: float, count: int) -> list[State]:
    task = tiny.task(dropout=dropout)
    rule, lrs = tiny.rule_for("adamw")
    states = [tiny.start(task, rule)]
    for step in tiny.steps(count, lrs):
        states.append(replay(task, rule, states[-1], [step]))
    return states


@pytest.mark.parametrize("snapshots", [1, 2, 3, 5, 13, 50])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_states_come_back_bit_for_bit(snapshots: int, dropout: float) -> None:
    task = tiny.task(dropout=dropout)
    rule, lrs = tiny.rule_for("adamw")
    expected = states_of_a_plain_loop(dropout, 13)
    made = record(task, rule, tiny.start(task, rule), tiny.steps(13, lrs), snapshots=snapshots)
    order = []
    for k, state, _ in made.backwards():
        order.append(k)
        assert state.step == k
        for ours, theirs in zip(state.tensors(), expected[k].tensors(), strict=True):
            assert torch.equal(ours, theirs)
    assert order == list(range(12, -1, -1))
    assert torch.equal(made.final.theta, expected[13].theta)
    with pytest.raises(RuntimeError, match="gone through already"):
        next(made.backwards())


def test_room_for_no_state_is_refused() -> None:
    task = tiny.task()
    rule, _ = tiny.rule_for("sgd")
    with pytest.raises(ValueError, match="snapshots must be at least 1 but got 0"):
        record(task, rule, tiny.start(task, rule), tiny.steps(1), snapshots=0)


MEMORY_ONLY = [(snapshots, 0) for snapshots in (1, 2, 3, 4, 7)]


@pytest.mark.parametrize(
    ("memory", "on_disk"), [*MEMORY_ONLY, (1, 1), (1, 3), (2, 2), (3, 1), (2, 40)]
)
def test_reversal_costs_what_dynamic_programming_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, on_disk: int
) -> None:
    """Counted with arithmetic taken out; a place on disk saves as much as one in memory."""
    calls = {"forward": 0, "write": 0, "read": 0}

    def pretend(task: object, rule: object, state: State, *_: object) -> tuple[State, object]:
        calls["forward"] += 1
        return State(state.theta, {}, state.step + 1), torch.zeros(1)

    def counted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def counting(*arguments: object) -> object:
            calls[name] += 1
            return call(*arguments)

        return counting

    monkeypatch.setattr(recording, "forward_step", pretend)
    monkeypatch.setattr(recording, "gradient", lambda *_: None)
    save, load = safetensors.torch.save_file, safetensors.torch.load_file
    monkeypatch.setattr(safetensors.torch, "save_file", counted("write", save))
    monkeypatch.setattr(safetensors.torch, "load_file", counted("read", load))
    task, rule, start = tiny.task(), cast(Rule, None), State(torch.zeros(1), {}, 0)
    disk = Disk(on_disk, tmp_path) if on_disk else None
    for length in (1, 2, 3, 4, 5, 8, 13, 21, 40):
        calls |= {"forward": 0, "write": 0, "read": 0}
        made = record(task, rule, start, tiny.steps(1) * length, snapshots=memory, disk=disk)
        assert len(made._kept) <= memory + on_disk
        for k, state, _ in made.backwards():
            assert state.step == k
            assert len(made._kept) <= memory + on_disk
            assert len(list(tmp_path.glob("*/*"))) <= on_disk
        # the target comes after the last step: one more place to come back from
        assert calls["forward"] == fewest_redone(length + 1, memory + on_disk)
        assert calls["read"] <= length
        if memory + on_disk >= length:
            assert calls["write"] == calls["read"] == max(0, length - memory)


def test_learning_rate_too_large_is_named_with_step_and_row() -> None:
    task = tiny.task()
    rule, _ = tiny.rule_for("sgd")
    with pytest.raises(NonFiniteError, match=r"step \d+: the loss of row \d+ is (nan|inf)"):
        record(task, rule, tiny.start(task, rule), tiny.steps(8, (1e200,)), snapshots=2)


def test_parameter_that_overflows_is_named() -> None:
    task = tiny.task()
    rule, _ = tiny.rule_for("sgd")
    start, steps = tiny.start(task, rule), tiny.steps(1, (float("inf"),))
    with pytest.raises(NonFiniteError, match=r"step 100: parameter 0.weight is no longer finite"):
        record(task, rule, start, steps, snapshots=2, first_step=100)


def test_caller_keeps_its_rng_and_its_gradients() -> None:
    task = tiny.task(dropout=0.5)
    rule, lrs = tiny.rule_for("adam")
    before = torch.get_rng_state()
    record(task, rule, tiny.start(task, rule), tiny.steps(2, lrs), snapshots=2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in task.model.module.parameters())


@pytest.mark.parametrize("room", [0, 1, 3, 5, 9])
@pytest.mark.parametrize("snapshots", [1, 2, 5])
def test_gradients_come_back_bit_for_bit(room: int, snapshots: int) -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adamw")
    start, steps = tiny.start(task, rule), tiny.steps(5, lrs)
    made = record(task, rule, start, steps, snapshots=snapshots, gradients=room)
    for k, state, grad in made.backwards():
        again = gradient(task, state.theta, steps[k])
        assert all(torch.equal(a, b) for a, b in zip(grad, again, strict=True))


@pytest.mark.parametrize("room", [0, 1, 3, 5, 9])
def test_a_kept_gradient_is_not_computed_again(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    task = tiny.task()
    rule, lrs = tiny.rule_for("adamw")
    made = record(
        task, rule, tiny.start(task, rule), tiny.steps(5, lrs), snapshots=5, gradients=room
    )
    computed = []

    def counted(task: object, theta: object, step: object) -> object:
        computed.append(step)
        return gradient(task, theta, step)  # type: ignore[arg-type]

    monkeypatch.setattr(recording, "gradient", counted)
    assert [k for k, *_ in made.backwards()] == [4, 3, 2, 1, 0]
    assert len(computed) == max(0, 5 - room)


def test_gradients_kept_change_nothing_that_is_recorded() -> None:
    task = tiny.task(dropout=0.3)
    rule, lrs = tiny.rule_for("adamw")
    start, steps = tiny.start(task, rule), tiny.steps(5, lrs)
    bare, kept = (record(task, rule, start, steps, snapshots=2, gradients=room) for room in (0, 9))
    assert torch.equal(bare.final.theta, kept.final.theta)
    assert all(torch.equal(a, b) for a, b in zip(bare.losses, kept.losses, strict=True))
