"""Snapshots: the states of a recording that are kept, in memory and in files."""

import shutil
import tempfile
import warnings
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from curate.errors import RunError
from curate.rules import State
from curate.runtime.files import checksum
from curate.runtime.ranks import ALONE, Ranks, everywhere, own_share, shares

HEADER = 4096
"""Bytes that a file takes beyond its state, about: names, and rounding up to disk blocks."""


@dataclass(frozen=True)
class Disk:
    """Room for `states` snapshots in files, in a folder of their own within `directory`.

    A directory of None is the system's place for temporary files, which may itself be in memory.
    """

    states: int
    directory: Path | None = None


@dataclass(frozen=True)
class _File:
    """A state in a file, and what is needed to read back the same bits on the same device."""

    path: Path
    expected: int
    step: int
    device: torch.device

    def read(self) -> State | None:
        """The state; None if the file is gone or holds anything but what was written."""
        try:
            mapped = safetensors.torch.load_file(self.path)
        except (OSError, SafetensorError):
            return None
        # a copy: the file may go, and arithmetic may round differently in another alignment
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        if checksum(tensors) != self.expected:
            return None
        theta = tensors.pop("theta").to(self.device)
        slots = {name[1:]: slot.to(self.device) for name, slot in tensors.items()}
        return State(theta, slots, self.step)


@dataclass(eq=False)
class Snapshots:
    """States kept of a stretch of steps, a stack: the newest is the first to be wanted.

    At most `memory` are in memory: the start, and the newest. Those in between are
    in files: the way back comes to them last and returns to them least often. A
    file is written once, and read once for every step of the way back that it is the
    nearest state to; no forward step is added. It is used only if its checksum is
    that of the state it was made of: a damaged or missing one is dropped, with a
    warning, and its steps are redone from the state below it, at worst the start.

    Memory: `memory` states, and two more for a moment while one is read. Disk:
    `disk.states` files of a state and about `HEADER` bytes; a file goes when it is
    popped, all of them with this object, at the latest with the process.

    first_step: number of the start in the whole run, for messages.
    sharded: each of the ranks keeps and writes its share of every state (`shard_bytes`), and
        they put them together when a state is wanted. A file is used if it is sound on every rank.

    Raises:
        RunError: a file cannot be written.
    """

    memory: int
    disk: Disk | None = None
    first_step: int = 0
    ranks: Ranks = ALONE
    sharded: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self.sharded = self.sharded and self.ranks.size > 1
        self._numels: list[int] = []
        self._stack: list[tuple[int, State | _File]] = []
        self._folder: Path | None = None

    def __len__(self) -> int:
        return len(self._stack)

    @property
    def free(self) -> int:
        """How many more there is room for."""
        return self.memory + (self.disk.states if self.disk else 0) - len(self._stack)

    def push(self, k: int, state: State) -> None:
        """Keep the state before step k, which comes after those that are there."""
        assert self.free > 0
        self._numels = [tensor.numel() for tensor in state.tensors()]
        self._stack.append((k, self._shard(state)))
        files = sum(isinstance(kept, _File) for _, kept in self._stack)
        if len(self._stack) - files > self.memory:
            oldest = 1 + files  # the start is at 0, then come the files
            number, kept = self._stack[oldest]
            assert isinstance(kept, State)
            self._stack[oldest] = (number, self._write(number, kept))

    def top(self) -> tuple[int, State]:
        """(k, state before step k), the newest that is kept."""
        while True:
            k, kept = self._stack[-1]
            if isinstance(kept, State):
                return k, self._whole(kept)
            state = kept.read()
            if everywhere(self.ranks, state is not None):
                assert state is not None
                return k, self._whole(state)
            if state is None:
                warnings.warn(
                    f"the snapshot before step {self.first_step + k} in {kept.path.parent} is "
                    "missing or damaged; its steps are redone from an earlier one.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self.pop()

    def pop(self) -> None:
        """Drop the newest, and its file if it has one."""
        _, kept = self._stack.pop()
        if isinstance(kept, _File):
            kept.path.unlink(missing_ok=True)

    def _shard(self, state: State) -> State:
        """This rank's share of a state."""
        if not self.sharded:
            return state
        tensors = state.tensors()
        return state.with_tensors(
            tuple(t[own_share(self.ranks, t.numel())].detach().clone() for t in tensors)
        )

    def _whole(self, kept: State) -> State:
        """The state whose shares the ranks keep."""
        if not self.sharded:
            return kept
        parts = zip(kept.tensors(), self._numels, strict=True)
        return kept.with_tensors(
            tuple(self.ranks.join(part, shares(self.ranks, count)) for part, count in parts)
        )

    def _write(self, k: int, state: State) -> _File:
        named = {"theta": state.theta} | {f"/{name}": slot for name, slot in state.slots.items()}
        tensors = {name: tensor.detach().cpu() for name, tensor in named.items()}
        assert self.disk is not None
        try:
            if self._folder is None:
                made = tempfile.mkdtemp(prefix=".curate-snapshots-", dir=self.disk.directory)
                self._folder = Path(made)
                weakref.finalize(self, shutil.rmtree, made, ignore_errors=True)
            path = self._folder / f"{k}.safetensors"
            safetensors.torch.save_file(tensors, path)
        except (OSError, SafetensorError) as error:
            where = self._folder or self.disk.directory or tempfile.gettempdir()
            raise RunError(
                f"trajectory.disk: the state before step {self.first_step + k}, "
                f"{state.nbytes() / 2**20:.1f} MiB, cannot be written to {where}: {error}; "
                "make room there or allow less on disk."
            ) from error
        return _File(path, checksum(tensors), state.step, state.theta.device)


def shard_bytes(state: State, ranks: Ranks) -> int:
    """Bytes of the largest share that a rank has of a state."""
    return sum(-(-t.numel() // ranks.size) * t.element_size() for t in state.tensors())
