"""What recording and scoring cost on a GPU, beside plain training: seconds a step and peak memory.

GPT-2 of 124 million parameters, batches of 32 x 128 tokens, AdamW, sdpa, random weights and tokens,
in float32, TF32 and bfloat16 autocast; a loop that looks eight steps ahead with it; then a Llama of
a billion parameters with LoRA. Quickest rows first; each is printed and written (JSON, a line a
row) as soon as it is known, and none is begun that the minutes left may not hold.

    python examples/benchmarks/gpu.py --minutes 8 --out gpu.jsonl
    python examples/benchmarks/gpu.py --device cpu --small --minutes 2

Peak is torch.cuda.max_memory_allocated; beyond states: less what the states and gradients take
that are kept for the way back. On a CPU there is no such figure; there the script shows that it
works.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from curate import LookAheadLoader
from curate.datasets import Encoded, TokenExamples
from curate.influence import Differences, Target, WindowScores, score_window
from curate.models import FlatModel, LabelsObjective
from curate.rules import AdamW, initial_state
from curate.trajectory import Step, Task, gradient, record

LR, LENGTH, HELD, AHEAD = 5e-4, 128, 32, 8


@dataclass
class Meter:
    """Times work on a device and writes rows."""

    device: torch.device
    out: Path | None
    ends: float

    def measure(self, work: Callable[[], Any]) -> tuple[float, float, Any]:
        """(seconds, peak MiB, what it returns)."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        found = work()
        if cuda:
            torch.cuda.synchronize()
        room = torch.cuda.max_memory_allocated() / 2**20 if cuda else 0.0
        return time.perf_counter() - begin, room, found

    def row(self, **values: Any) -> None:
        """Print a row, and add it to the file."""
        print(
            "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in values.items())
        )
        sys.stdout.flush()
        if self.out is not None:
            with self.out.open("a") as file:
                file.write(json.dumps(values) + "\n")

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()


@contextmanager
def precision(name: str) -> Iterator[torch.dtype | None]:
    """Matrix products in float32 or TF32; gives what autocast computes in, if it does."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = name != "float32"
    try:
        yield torch.bfloat16 if name == "bfloat16" else None
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def gpt2(small: bool) -> nn.Module:
    """GPT-2, or a tiny one, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 512} if small else {}
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, **size)
    torch.manual_seed(0)
    module: nn.Module = GPT2LMHeadModel(config)
    return module.train()


def llama(small: bool) -> nn.Module:
    """A Llama of 1.1 billion parameters in bfloat16, with LoRA of rank 16 in float32."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    wide: dict[str, Any] = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    }
    tiny = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    }
    torch.manual_seed(0)
    config = LlamaConfig(use_cache=False, **(tiny if small else wide))
    adapters = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    module: nn.Module = get_peft_model(LlamaForCausalLM(config), adapters)
    return module.train()


def examples(count: int, vocabulary: int, seed: int) -> TokenExamples:
    """Random texts of LENGTH tokens."""
    tokens = torch.randint(
        vocabulary, (count, LENGTH), generator=torch.Generator().manual_seed(seed)
    )
    texts = (Encoded(row, [True] * LENGTH) for row in tokens.tolist())
    return TokenExamples.gather(texts, None, pad=0)


def plain_step(
    module: nn.Module, autocast: torch.dtype | None, device: torch.device, batch: int, size: int
) -> Callable[[], None]:
    """A step of a loop of torch's."""
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR)
    ids = torch.randint(size, (batch, LENGTH), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = module(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()

    return step


def compare(
    meter: Meter,
    name: str,
    build: Callable[[bool], nn.Module],
    how: str,
    steps: int,
    batch: int,
    small: bool,
    check: bool,
) -> None:
    """A plain step, one recorded and one recorded and scored, in one precision."""
    with precision(how) as autocast:
        module = build(small).to(meter.device)
        size = int(module.config.vocab_size)  # type: ignore[union-attr, arg-type]
        step = plain_step(module, autocast, meter.device, batch, size)
        step()
        each = [meter.measure(step) for _ in range(steps)]
        once, room = median(e[0] for e in each), max(e[1] for e in each)
        meter.row(model=name, precision=how, way="plain", seconds=once, peak_mib=room)
        del step
        module.zero_grad(set_to_none=True)
        module = build(small)
        begin = time.perf_counter()
        model = FlatModel(module, device=meter.device, autocast=autocast)
        texts = examples(batch * steps, size, 1)
        task = Task(model, LabelsObjective(shifts=True), texts)
        rows = torch.arange(batch * steps).split(batch)
        plan = [Step(r, torch.ones(batch), (LR,), seed=t) for t, r in enumerate(rows)]
        rule, targets = AdamW(), [Target("held", examples(HELD, size, 2))]
        start = initial_state(rule, model.read())

        def run(differences: Differences, count: int) -> WindowScores:
            recording = record(task, rule, start, plan[:count], snapshots=count, gradients=count)
            return score_window(task, rule, recording, targets, differences=differences)

        differences = Differences()
        run(differences, 2)
        first = time.perf_counter() - begin
        seconds, peak, found = meter.measure(lambda: run(differences, steps))
        kept = steps * (start.nbytes() + start.theta.nbytes) / 2**20
        meter.row(
            model=name,
            precision=how,
            way="recorded and scored",
            seconds=seconds / steps,
            times_plain=seconds / steps / once,
            peak_mib=peak,
            beyond_states=peak - kept,
            times_plain_memory=(peak - kept) / room if room else 0.0,
            steps=steps,
            batch=batch,
            until_two_scored=first,
        )
        more, _, _ = meter.measure(lambda: gradient(task, start.theta, plan[0]))
        meter.row(model=name, precision=how, way="gradient", seconds=more, times_plain=more / once)
        if check:
            central = Differences(central=True)
            seconds, _, right = meter.measure(lambda: run(central, steps))
            meter.row(
                model=name,
                precision=how,
                way="central differences",
                seconds=seconds / steps,
                times_plain=seconds / steps / once,
                **agreement(found, right),
            )


def loop(meter: Meter, name: str, how: str, batch: int, small: bool) -> None:
    """A window of a loop that keeps half, chosen and trained on: a step's share of it."""
    with precision(how) as autocast:
        module = gpt2(small).to(meter.device)
        size = int(module.config.vocab_size)  # type: ignore[union-attr, arg-type]
        ids = torch.randint(size, (batch * AHEAD * 2, LENGTH), device=meter.device)
        optimizer = torch.optim.AdamW(module.parameters(), lr=LR)
        batches = [{"input_ids": part, "labels": part} for part in ids.split(batch)]
        targets = {key: x[: min(HELD, batch)] for key, x in batches[0].items()}
        chosen = iter(
            LookAheadLoader(
                batches,
                module,
                optimizer,
                LabelsObjective(shifts=True),
                targets,
                horizon=AHEAD,
                rounds=1,
                autocast=autocast,
            )
        )

        def window() -> None:
            for own in islice(chosen, AHEAD):
                optimizer.zero_grad()
                with torch.autocast(meter.device.type, autocast, enabled=autocast is not None):
                    loss = module(**own).loss
                loss.backward()
                optimizer.step()

        window()
        seconds, peak, _ = meter.measure(window)
        way = f"loop, horizon {AHEAD}, half kept"
        meter.row(model=name, precision=how, way=way, seconds=seconds / AHEAD, peak_mib=peak)


def agreement(found: WindowScores, right: WindowScores) -> dict[str, float]:
    """How near scores are to others: relative error, Spearman, share of each half kept alike."""
    ours = [x[0] for x in found.influences]
    theirs = [x[0] for x in right.influences]
    a, b = torch.cat(ours), torch.cat(theirs)
    ranks = torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double()
    alike = [
        float((_half(x) == _half(y)).double().mean()) for x, y in zip(ours, theirs, strict=True)
    ]
    return {
        "relative_error": float((a - b).norm() / b.norm()),
        "spearman": float(torch.corrcoef(ranks)[0, 1]),
        "kept_alike": sum(alike) / len(alike),
    }


def _half(values: Tensor) -> Tensor:
    return values.argsort().argsort() >= len(values) // 2


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of recording and scoring on a GPU.")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it works")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device; --device cpu --small shows that it works", file=sys.stderr)
        return 2
    meter = Meter(device, arguments.out, time.monotonic() + 60 * arguments.minutes)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    meter.row(device=name, torch=torch.__version__, date=time.strftime("%Y-%m-%d"))
    batch, small = 4 if arguments.small else 32, arguments.small
    plan: list[tuple[str, Callable[[bool], nn.Module], str, int, int, bool]] = [
        ("gpt2", gpt2, "float32", 10, batch, True),
        ("gpt2", gpt2, "tf32", 10, batch, True),
        ("gpt2", gpt2, "bfloat16", 10, batch, False),
        ("llama 1.1B LoRA", llama, "bfloat16", 6, max(2, batch // 4), False),
    ]
    for what, build, how, steps, rows, check in plan:
        if "LoRA" in what and (meter.left > 60 or small):
            loop(meter, "gpt2", "float32", batch, small)
        if meter.left < 45 and not small:
            meter.row(model=what, precision=how, way="left out: no time")
            continue
        compare(meter, what, build, how, steps, rows, small, check)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
