"""What a run is made of: all that decides what it comes to, to the last bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from curate.errors import UnfinishedError
from curate.output.directory import made_with
from curate.pipeline.job import Job
from curate.recipe import resolved
from curate.runtime.files import digest_of

LOSSES = "first losses"


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


def refuse_difference(folder: Path, left: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise UnfinishedError if a run is not made of what it was made of."""
    # what comes of JSON is compared with what goes there: no tuples
    changes = list(_differences(left, json.loads(json.dumps(found)), ()))
    if not changes:
        return
    changes = [one for one in changes if one[0] != (LOSSES,)] or changes  # those follow from others
    path, before, now = changes[0]
    key = ".".join(path[1:])
    shown = f"{json.dumps(before)} -> {json.dumps(now)}"
    what = {
        "recipe": f"the recipe is another: {key} {shown}",
        "data": f"{' '.join(path)}: has changed: {shown}",
        "versions": f"versions are others: {key} {shown}",
        "processes": f"it ran in another number of processes: {shown}",
        "threads": f"it ran with another number of threads: {shown} (OMP_NUM_THREADS sets it)",
        "device": f"it ran on another device: {shown}",
        LOSSES: "the same recipe and data now give other losses in the first step: the "
        "model, its code or the machine has changed",
    }.get(path[0], f"{'.'.join(path)} {shown}")
    more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
    raise UnfinishedError(
        f"{folder.name} cannot be gone on with: {what}{more}; undo that, or start again with "
        "--overwrite."
    )


def _differences(
    left: Any, found: Any, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(path, before, now) of every value that differs."""
    if isinstance(left, dict) and isinstance(found, dict):
        for key in [*found, *(key for key in left if key not in found)]:
            yield from _differences(left.get(key), found.get(key), (*path, key))
    elif isinstance(left, list) and isinstance(found, list) and len(left) == len(found):
        for k, pair in enumerate(zip(left, found, strict=True)):
            yield from _differences(*pair, (*path, str(k)))
    elif left != found:
        yield path, left, found
