"""What happened: steps of training that can be redone and differentiated."""

from curate.trajectory.checkpoints import redone
from curate.trajectory.per_example import example_gradients
from curate.trajectory.recording import Recording, ignore_step, record, replay
from curate.trajectory.snapshots import HEADER, Disk, Snapshots, shard_bytes
from curate.trajectory.step import (
    ChunkGradient,
    ChunkLosses,
    Gradient,
    Step,
    Task,
    chunk_gradient,
    chunk_losses,
    forward_step,
    gradient,
    nonzero,
    seeded_rng,
)
from curate.trajectory.tapes import counting, tape_size

__all__ = [
    "HEADER",
    "ChunkGradient",
    "ChunkLosses",
    "Disk",
    "Gradient",
    "Recording",
    "Snapshots",
    "Step",
    "Task",
    "chunk_gradient",
    "chunk_losses",
    "counting",
    "example_gradients",
    "forward_step",
    "gradient",
    "ignore_step",
    "nonzero",
    "record",
    "redone",
    "replay",
    "seeded_rng",
    "shard_bytes",
    "tape_size",
]
