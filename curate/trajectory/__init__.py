"""What happened: steps of training that can be redone and differentiated."""

from curate.trajectory.per_example import example_gradients
from curate.trajectory.recording import Recording, ignore_step, record, replay
from curate.trajectory.snapshots import HEADER, Disk
from curate.trajectory.step import (
    ChunkGradient,
    ChunkLosses,
    Gradient,
    Step,
    Task,
    add_up,
    chunk_gradient,
    chunk_losses,
    forward_step,
    gradient,
    nonzero,
    seeded_rng,
)

__all__ = [
    "HEADER",
    "ChunkGradient",
    "ChunkLosses",
    "Disk",
    "Gradient",
    "Recording",
    "Step",
    "Task",
    "add_up",
    "chunk_gradient",
    "chunk_losses",
    "example_gradients",
    "forward_step",
    "gradient",
    "ignore_step",
    "nonzero",
    "record",
    "replay",
    "seeded_rng",
]
