"""What happened: steps of training that can be redone and differentiated."""

from curate.trajectory.checkpoints import redone
from curate.trajectory.measure import counting, graph_size
from curate.trajectory.per_example import example_gradients
from curate.trajectory.recording import Recording, ignore_step, record, replay
from curate.trajectory.snapshots import HEADER, Disk, Snapshots, shard_bytes
from curate.trajectory.step import (
    ChunkLosses,
    Gradient,
    Step,
    Task,
    Watch,
    chunk_losses,
    forward,
    forward_step,
    gradient,
    nonzero,
    terms,
)

__all__ = [
    "HEADER",
    "ChunkLosses",
    "Disk",
    "Gradient",
    "Recording",
    "Snapshots",
    "Step",
    "Task",
    "Watch",
    "chunk_losses",
    "counting",
    "example_gradients",
    "forward",
    "forward_step",
    "gradient",
    "graph_size",
    "ignore_step",
    "nonzero",
    "record",
    "redone",
    "replay",
    "shard_bytes",
    "terms",
]
