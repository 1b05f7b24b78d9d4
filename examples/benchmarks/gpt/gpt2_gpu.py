"""GPT-2 of 124 million parameters on a GPU: seconds a step, plain, recorded and scored.

Random weights and tokens, batches of 32 x 128, in float32 and with autocast to bfloat16, in the
plain loop as in curate's. The floor of recording and scoring a
step is three gradients: one primal, two tangent. Memory is
torch.cuda.max_memory_allocated, on a CPU by how much the process's peak rose.

    python examples/benchmarks/gpt/gpt2_gpu.py [--steps 8]
    python examples/benchmarks/gpt/gpt2_gpu.py --device cpu --layers 2 --width 64 --steps 3

On a CPU the vocabulary is 1,024 and batches are of 4, unless others are given; it shows
that the script works and nothing more.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from meter import peak, warm_up
from scored import as_examples
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from curate.influence import Target, score_window
from curate.models import OBJECTIVES, FlatModel, build_pretrained
from curate.rules import AdamW, initial_state
from curate.trajectory import Recording, Step, Task, gradient, record

LR, LENGTH, HELD, HEAD = 1e-4, 128, 32, 64


class Clock:
    """Seconds and memory on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"

    def measure(self, work: Callable[[], Any]) -> tuple[float, float, Any]:
        """(seconds, peak MiB, what it returns)."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        before, begin = peak(), time.perf_counter()
        found = work()
        if self._cuda:
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - begin
        if self._cuda:
            return seconds, torch.cuda.max_memory_allocated(self._device) / 2**20, found
        return seconds, peak() - before, found


def plain(
    folder: str, tokens: Tensor, clock: Clock, device: torch.device, autocast: torch.dtype | None
) -> tuple[float, float]:
    """A step of a loop of torch's on tokens of shape (steps + 1, batch, length), median and peak.

    The last batch warms up.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, foreach=True)

    def step(t: int) -> None:
        ids = tokens[t].to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()

    *batches, first = range(len(tokens))
    step(first)
    each = [clock.measure(partial(step, t)) for t in batches]
    return median(e[0] for e in each), max(e[1] for e in each)


def compare(
    layers: int, width: int, vocabulary: int, batch: int, steps: int, device: torch.device,
    autocast: torch.dtype | None,
) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Name -> (seconds a step, peak MiB)."""
    generator, clock = torch.Generator().manual_seed(0), Clock(device)
    tokens = torch.randint(vocabulary, (steps + 1, batch, LENGTH), generator=generator)
    held = torch.randint(vocabulary, (HELD, LENGTH), generator=generator)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        config = GPT2Config(
            vocab_size=vocabulary, n_layer=layers, n_embd=width, n_head=max(1, width // HEAD),
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        config.save_pretrained(folder)
        torch.manual_seed(0)
        module = build_pretrained(folder, "causal_lm", outputs=0, pad=0, from_scratch=True)
        module.save_pretrained(folder)  # type: ignore[operator]  # a module of transformers'
        found["plain"] = plain(folder, tokens, clock, device, autocast)
    model = FlatModel(module.train(), device=device, autocast=autocast)
    task = Task(model, OBJECTIVES["causal_lm"](), as_examples(tokens.flatten(0, 1)))
    plan = [
        Step(rows, torch.ones(batch), (LR,), seed=t)
        for t, rows in enumerate(torch.arange(steps * batch).split(batch))
    ]
    rule, targets = AdamW(), [Target("held", as_examples(held))]
    start = initial_state(rule, model.read())

    def recorded(first: int, count: int) -> Recording:
        return record(task, rule, start, plan[first : first + count], snapshots=count)

    score_window(task, rule, recorded(0, 2), targets)  # warms up
    each = [clock.measure(partial(gradient, task, start.theta, s)) for s in plan]
    found["gradient"] = median(e[0] for e in each), max(e[1] for e in each)
    seconds, room, recording = clock.measure(lambda: recorded(0, steps))
    found["recorded"] = seconds / steps, room
    more, most, _ = clock.measure(lambda: score_window(task, rule, recording, targets))
    found["and scored"] = (seconds + more) / steps, max(room, most)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Seconds a step of GPT-2, plain and scored.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device; --device cpu --layers 2 --width 64 runs it small", file=sys.stderr)
        return 2
    large = device.type == "cuda"
    vocabulary = arguments.vocabulary or (50257 if large else 1024)
    batch = arguments.batch or (32 if large else 4)
    warm_up()
    name = torch.cuda.get_device_name(device) if large else "CPU"
    print(
        f"{arguments.layers} layers x {arguments.width}, vocabulary {vocabulary}, batches of "
        f"{batch} x {LENGTH}, {arguments.steps} steps, {name}"
    )
    print("autocast  way         seconds a step  x plain  x 3 gradients  peak MiB")
    for autocast in (None, torch.bfloat16):
        found = compare(
            arguments.layers, arguments.width, vocabulary, batch, arguments.steps, device, autocast
        )
        once, floor = found["plain"][0], 3 * found["gradient"][0]
        for what, (seconds, room) in found.items():
            print(
                f"{'bfloat16' if autocast else 'none':8s}  {what:10s} {seconds:15.4f} "
                f"{seconds / once:8.2f} {seconds / floor:14.2f} {room:9.0f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
