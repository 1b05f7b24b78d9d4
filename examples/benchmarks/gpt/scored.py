"""The same run by `curate`: replayed, or recorded and every sequence scored at K = T.

    python scored.py replay FOLDER
    python scored.py linear FOLDER [--dtype float64]
    python scored.py linear FOLDER --micro-batch 8
    python scored.py linear FOLDER --in-memory 32
    python scored.py jump FOLDER

Model, objective and examples are those that `curate select` makes of a directory. Influences
go to FOLDER, seconds and memory are printed as a line of JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from meter import Meter, warm_up
from safetensors.torch import save_file
from setting import Setting, read
from torch import Tensor

from curate.datasets import Encoded, TokenExamples
from curate.influence import Scoring, Target, influence, score_window, target_losses
from curate.models import CausalLM, FlatModel, build_pretrained
from curate.rules import AdamW, initial_state
from curate.runtime.allocator import keep_freed_memory
from curate.trajectory import Disk, Step, Task, record, replay

IN_MEMORY = 8
"""States, and gradients, unless given; all other states are on disk, and none is computed again."""
JUMP_BYTES = 2**28


def as_examples(tokens: Tensor) -> TokenExamples:
    texts = (Encoded(row, [True] * len(row)) for row in tokens.tolist())
    return TokenExamples.gather(texts, None, pad=0)


def plan(setting: Setting, micro_batch: int) -> list[Step]:
    rows = torch.arange(setting.batch * setting.steps).split(setting.batch)
    weights = torch.ones(setting.batch)
    return [
        Step(batch, weights, (setting.rate(t),), seed=t, micro_batch=micro_batch)
        for t, batch in enumerate(rows)
    ]


def run(
    what: str,
    folder: Path,
    dtype: torch.dtype,
    micro_batch: int = 0,
    in_memory: int = IN_MEMORY,
) -> dict[str, Any]:
    meter = Meter()
    setting, train, held = read(folder)
    module = build_pretrained(str(folder), "causal_lm", outputs=0, pad=0, vectorized=what == "jump")
    model = FlatModel(module.train(), dtype=dtype)
    task = Task(model, CausalLM(), as_examples(train))
    targets, rule = [Target("held", as_examples(held))], AdamW()
    steps = plan(setting, micro_batch)
    start = initial_state(rule, model.read())
    target_losses(model, task.objective, targets, start.theta)  # warms up
    if what == "replay":
        meter.begin("train")
        final = replay(task, rule, start, steps)
        found = meter.found()
        loss = target_losses(model, task.objective, targets, final.theta)
        return found | {"target": float(loss)}

    with tempfile.TemporaryDirectory(dir=folder) as place:
        meter.begin("record")
        disk = Disk(len(steps), Path(place))
        recording = record(
            task, rule, start, steps, snapshots=in_memory, disk=disk, gradients=in_memory
        )
        meter.begin("score")
        scoring = Scoring(jump_bytes=JUMP_BYTES if what == "jump" else None)
        scores = score_window(task, rule, recording, targets, scoring=scoring)
        found = meter.found()
        del recording
    parts = zip(steps, scores.derivatives, scores.sizes, strict=True)
    fixed = [influence(d, step.weights, sizes, "fixed")[0] for step, d, sizes in parts]
    saved = {"renormalised": torch.cat([s[0] for s in scores.influences])}
    saved |= {"fixed": torch.cat(fixed)} if what == "linear" else {}
    name = f"{what}-{micro_batch}" if micro_batch else what
    save_file(saved, folder / f"{name}-{str(dtype).rpartition('.')[2]}.safetensors")
    return found | {"target": float(scores.target_losses), "parameters": model.size}


def main() -> None:
    parser = argparse.ArgumentParser(description="The run replayed or scored by curate.")
    parser.add_argument("what", choices=["replay", "linear", "jump"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--in-memory", type=int, default=IN_MEMORY)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command does
    torch.set_num_threads(1)
    warm_up()
    dtype = getattr(torch, arguments.dtype)
    found = run(arguments.what, arguments.folder, dtype, arguments.micro_batch, arguments.in_memory)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
