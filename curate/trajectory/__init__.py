"""What happened: steps of training that can be redone and differentiated."""

from curate.trajectory.recording import Recording, ignore_step, record, replay
from curate.trajectory.step import (
    ChunkLosses,
    Gradient,
    Step,
    Task,
    chunk_losses,
    forward_step,
    gradient,
    nonzero,
    seeded_rng,
)

__all__ = [
    "ChunkLosses",
    "Gradient",
    "Recording",
    "Step",
    "Task",
    "chunk_losses",
    "forward_step",
    "gradient",
    "ignore_step",
    "nonzero",
    "record",
    "replay",
    "seeded_rng",
]
