"""What a run is made of: all that decides what it comes to, to the last bit."""

from typing import Any

import torch

from curate.output.directory import made_with
from curate.pipeline.job import Job
from curate.recipe import resolved
from curate.runtime.files import digest_of
from curate.runtime.resume import LOSSES


def identity(job: Job, threads: int) -> dict[str, Any]:
    """All that decides what a run comes to, to the last bit, in plain values.

    The losses of the first step stand for what no fingerprint reaches: the code of a model,
    its frozen weights, the kernels of a machine.
    """
    device = str(job.device)
    if job.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(job.device)})"
    return {
        "recipe": resolved(job.recipe),
        "data": job.data.sources,
        "device": device,
        "threads": threads,
        "processes": job.ranks.size,
        "versions": made_with()["versions"],
        LOSSES: digest_of(job.first_losses().tolist()),
    }
