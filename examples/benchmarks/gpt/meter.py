"""Seconds and memory of the process that asks, which may be one without curate."""

import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field

from transformers import GPT2Config, GPT2LMHeadModel

TOUCHED = 3 * 2**30
"""Bytes, above the peak of every way that is measured."""


def warm_up() -> None:
    """Make what is used for the first time nobody's cost.

    What a GPT-2 imports when it is called; and memory that the machine, if virtual, gets from its
    host at the first touch.
    """
    config = GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    ids = GPT2LMHeadModel(config).dummy_inputs["input_ids"] % 8
    GPT2LMHeadModel(config)(input_ids=ids, labels=ids).loss.backward()
    subprocess.run([sys.executable, "-c", f"len(bytes([1]) * {TOUCHED})"], check=True)


def peak() -> float:
    """Peak resident memory of this process so far, MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


@dataclass
class Meter:
    """CPU and wall seconds of stretches by name, and the peak above the start, MiB."""

    start: float = field(default_factory=peak)
    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)
    _begun: tuple[str, float, float] | None = None

    def begin(self, name: str) -> None:
        """The stretch `name` begins, and the one before, if any, ends."""
        self.end()
        self._begun = (name, time.process_time(), time.perf_counter())

    def end(self) -> None:
        if self._begun is not None:
            name, cpu, wall = self._begun
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu
            self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
            self._begun = None

    def found(self) -> dict[str, object]:
        """What is known so far."""
        self.end()
        return {
            "cpu": self.cpu,
            "cpu_total": sum(self.cpu.values()),
            "wall": self.wall,
            "wall_total": sum(self.wall.values()),
            "peak": peak() - self.start,
            "start": self.start,
        }
