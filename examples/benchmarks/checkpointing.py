"""What `training.checkpointing` saves and costs in a scored step of a GPT, layer by layer.

One step of 8 x 128 tokens of a GPT-2 of width 128 is recorded and scored, each way in a fresh
process on one thread: peak resident memory above that of the model and its state, and CPU
time (the least of three).

    python examples/benchmarks/checkpointing.py [--layers 4 8 16]

About two minutes. Needs transformers (the extra `hf`).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from curate.datasets import TensorExamples
from curate.influence import backward_step, final_adjoint
from curate.models import FlatModel, FunctionObjective, checkpoint_layers
from curate.models.fused import fuse_layers
from curate.models.fused_loss import cross_entropy
from curate.rules import AdamW, initial_state
from curate.trajectory import Step, Task

ROWS, LENGTH, VOCABULARY = 8, 128, 2048


def next_token(model: Any, batch: Any) -> torch.Tensor:
    """Summed loss of every row of tokens."""
    tokens = batch["features"].long()
    logits = model(input_ids=tokens).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    summed: torch.Tensor = losses.view(len(tokens), -1).sum(dim=1)
    return summed


def child(layers: int, again: bool) -> None:
    """Score one step and print what it took."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=128, n_layer=layers, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    module = GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    fuse_layers(module)
    model = FlatModel(checkpoint_layers(module) if again else module)
    tokens = torch.randint(VOCABULARY, (ROWS, LENGTH))
    examples = TensorExamples(tokens, None, torch.arange(ROWS))
    task, rule = Task(model, FunctionObjective(next_token, "next_token"), examples), AdamW()
    state = initial_state(rule, model.read())
    step = Step(torch.arange(ROWS), torch.ones(ROWS), (1e-3,), seed=0)
    adjoint = final_adjoint(state, torch.randn(1, model.size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        found = backward_step(task, rule, state, step, adjoint).derivatives
        seconds.append(time.process_time() - begin)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"MiB": grown, "seconds": min(seconds), "found": found[0].tolist()}))


def measure(layers: int, again: bool) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), "--child", str(layers), str(int(again))],
        capture_output=True, text=True, check=True,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of checkpointed scoring.")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], bool(arguments.child[1]))
        return
    print("layers  kept              computed again     memory  time  derivatives off by")
    for layers in arguments.layers:
        kept, again = (measure(layers, way) for way in (False, True))
        a, b = torch.tensor(kept["found"]), torch.tensor(again["found"])
        print(
            f"{layers:6d}  {kept['MiB']:6.0f} MiB {kept['seconds']:4.2f} s"
            f"  {again['MiB']:6.0f} MiB {again['seconds']:4.2f} s"
            f"  {again['MiB'] / kept['MiB']:5.2f} x  {again['seconds'] / kept['seconds']:4.2f} x"
            f"  {float((a - b).norm() / a.norm()):.0e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
