"""Snapshots on disk: the same bits, within their budget, never a damaged one, nothing left over."""

import resource
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from curate.errors import NonFiniteError, RunError
from curate.influence import score_window
from curate.rules import AdamW, State
from curate.trajectory import Disk, Recording, Step, Task, record
from curate.trajectory.snapshots import Snapshots
from tests import tiny

STEPS = 13
SLOTS = ["sgd", "sgd-momentum", "adamw", "rmsprop-centered", "adagrad", "adafactor", "muon"]
"""A rule for each set of slots."""


def made(
    directory: Path, memory: int, on_disk: int, length: int = STEPS, dropout: float = 0.5
) -> Recording:
    """A recording by AdamW with room for so many states in memory and on disk."""
    task = tiny.task(dropout=dropout)
    rule, lrs = tiny.rule_for("adamw")
    disk = Disk(on_disk, directory) if on_disk else None
    start, steps = tiny.start(task, rule), tiny.steps(length, lrs)
    return record(task, rule, start, steps, snapshots=memory, disk=disk, first_step=100)


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*/*"))


def same(state: State, other: State) -> bool:
    pairs = zip(state.tensors(), other.tensors(), strict=True)
    return state.step == other.step and all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[int, State]:
    """The states before every step, all kept in memory."""
    return {k: s for k, s, _ in made(tmp_path_factory.mktemp("none"), STEPS, 0).backwards()}


@pytest.mark.parametrize("on_disk", [1, 2, 5, 12, 50])
@pytest.mark.parametrize("memory", [1, 2, 3, 13])
def test_states_come_back_bit_for_bit(
    tmp_path: Path, expected: dict[int, State], memory: int, on_disk: int
) -> None:
    recorded = made(tmp_path, memory, on_disk)
    order = []
    for k, state, _ in recorded.backwards():
        assert same(state, expected[k])
        assert len(files(tmp_path)) <= on_disk
        order.append(k)
    assert order == list(range(STEPS - 1, -1, -1))
    assert not files(tmp_path)
    del recorded
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SLOTS)
def test_influences_are_the_same_bits_with_everything_in_memory(tmp_path: Path, name: str) -> None:
    """With clipping, two param groups and micro-batches, and with none of them."""
    for grouped, clip, micro in ((False, None, 0), (True, 0.3, 4)):
        task = tiny.task(dropout=0.3, grouped=grouped, dtype=torch.float32)
        rule, lrs = tiny.rule_for(name, task.model.group_shapes, clip)
        start, steps = tiny.start(task, rule), tiny.steps(6, lrs, micro=micro)
        influences = []
        for memory, disk in ((6, None), (1, Disk(5, tmp_path)), (2, Disk(2, tmp_path))):
            recorded = record(task, rule, start, steps, snapshots=memory, disk=disk)
            assert bool(files(tmp_path)) == (disk is not None)
            scores = score_window(task, rule, recorded, tiny.targets(torch.float32))
            influences.append(torch.stack(scores.influences))
        everything, all_on_disk, few = influences
        assert everything.abs().max() > 0
        assert torch.equal(everything, all_on_disk)
        assert torch.equal(everything, few)


@pytest.mark.parametrize("on_disk", [6, 1000])
def test_live_states_do_not_grow_with_the_run(tmp_path: Path, on_disk: int) -> None:
    """Counted by their parameters, whoever holds them."""
    born: list[weakref.ref[torch.Tensor]] = []

    class Watched(AdamW):
        def update(self, grad: torch.Tensor, state: State, lrs: tuple[float, ...]) -> State:
            after = super().update(grad, state, lrs)
            born.append(weakref.ref(after.theta))
            return after

    task, rule = tiny.task(), Watched()
    most = {}
    for length in (16, 128):
        born.clear()
        start, steps = tiny.start(task, rule), tiny.steps(4) * (length // 4)
        recorded = record(task, rule, start, steps, snapshots=4, disk=Disk(on_disk, tmp_path))
        alive = [sum(ref() is not None for ref in born)]
        for _ in recorded.backwards():
            alive.append(sum(ref() is not None for ref in born))
        most[length] = max(alive)
    assert max(most.values()) <= 4 + 2, most


def damage_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def another_state(path: Path) -> None:
    """A sound file with the wrong state."""
    tensors = safetensors.torch.load(path.read_bytes())
    safetensors.torch.save_file({name: t + 1 for name, t in tensors.items()}, path)


DAMAGES = [damage_a_byte, cut_short, another_state, Path.unlink, lambda path: path.write_bytes(b"")]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", [slice(0, 1), slice(3, 4), slice(None)])
def test_a_damaged_snapshot_is_computed_again(
    tmp_path: Path, expected: dict[int, State], damage: Callable[[Path], object], which: slice
) -> None:
    recorded = made(tmp_path, 2, 8)
    hit = files(tmp_path)[which]
    for path in hit:
        damage(path)
    with pytest.warns(RuntimeWarning, match=r"before step 1\d\d in .* is missing or damaged") as w:
        states = {k: s for k, s, _ in recorded.backwards()}
    assert len(w) == len(hit)
    assert all(same(states[k], expected[k]) for k in range(STEPS))
    assert not files(tmp_path)


def test_damage_on_the_way_back_is_seen_too(tmp_path: Path, expected: dict[int, State]) -> None:
    recorded = made(tmp_path, 1, 3)
    states = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k, state, _ in recorded.backwards():
            states[k] = state
            for path in files(tmp_path)[-1:]:
                damage_a_byte(path)
    assert len(caught) > 3
    assert all(same(states[k], expected[k]) for k in range(STEPS))


def test_the_start_and_the_newest_are_in_memory(tmp_path: Path) -> None:
    kept = Snapshots(3, Disk(4, tmp_path))
    states = [State(torch.full((2,), float(k)), {}, k) for k in range(7)]
    for k, state in enumerate(states):
        kept.push(k, state)
    assert [path.stem for path in files(tmp_path)] == ["1", "2", "3", "4"]
    assert kept.free == 0
    for k in range(6, -1, -1):
        place, state = kept.top()
        assert place == k == state.step
        assert (state.theta is states[k].theta) == (k in (0, 5, 6))
        kept.pop()
    assert len(kept) == 0
    assert not files(tmp_path)


def test_names_of_slots_come_back(tmp_path: Path) -> None:
    """Slots of param groups, of every type and shape; one called theta is not the parameters."""
    slots = {
        "theta": torch.ones(2, dtype=torch.float32),
        "0/m": torch.tensor([float("nan"), -0.0], dtype=torch.float64),
        "1/v": torch.zeros(0),
        "t": torch.tensor([[3]], dtype=torch.int64),
        "b": torch.ones(3, dtype=torch.bfloat16),
    }
    kept = Snapshots(1, Disk(1, tmp_path))
    start, state = State(torch.zeros(1), {}, 0), State(torch.full((2,), 0.1), slots, 7)
    kept.push(0, start)
    kept.push(1, state)
    _, back = kept.top()
    assert back.step == 7
    assert sorted(back.slots) == sorted(slots)
    for ours, theirs in zip(back.tensors(), state.tensors(), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file may grow beyond 100 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_ends_the_run_in_one_line(tmp_path: Path, little_room: None) -> None:
    with pytest.raises(RunError) as caught:
        made(tmp_path, 2, 8)
    message = str(caught.value)
    assert message.startswith("trajectory.disk: the state before step 104, 0.0 MiB, cannot be")
    assert str(tmp_path) in message
    assert "File too large" in message
    assert "\n" not in message


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be written to .*nowhere: .*No such file"):
        made(tmp_path / "nowhere", 2, 8)


def interrupted(task: Task, steps: list[Step], disk: Disk) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 9:
            assert files(disk.directory)  # type: ignore[arg-type]
            raise KeyboardInterrupt

    record(task, AdamW(), tiny.start(task, AdamW()), steps, snapshots=2, disk=disk, on_step=tick)


def test_nothing_is_left_of_a_recording_that_failed(tmp_path: Path) -> None:
    task = tiny.task()
    with pytest.raises(KeyboardInterrupt):
        interrupted(task, tiny.steps(STEPS), Disk(20, tmp_path))
    assert not list(tmp_path.iterdir())
    rule, _ = tiny.rule_for("sgd")
    start, steps = tiny.start(task, rule), tiny.steps(8, (1e200,))
    with pytest.raises(NonFiniteError):
        record(task, rule, start, steps, snapshots=1, disk=Disk(20, tmp_path))
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_recording_that_nobody_goes_through(tmp_path: Path) -> None:
    recorded = made(tmp_path, 2, 8)
    assert files(tmp_path)
    next(recorded.backwards())
    del recorded
    assert not list(tmp_path.iterdir())


def test_without_a_directory_the_system_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    task, rule = tiny.task(), AdamW()
    recorded = record(task, rule, tiny.start(task, rule), tiny.steps(4), snapshots=1, disk=Disk(3))
    assert len(files(tmp_path)) == 3
    del recorded
