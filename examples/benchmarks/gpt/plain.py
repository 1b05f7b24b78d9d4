"""Training with torch alone, as anyone would write it: the unit of cost, and the truth.

    python plain.py train FOLDER     seconds and memory of the run
    python plain.py leave FOLDER     the run again without single sequences, in float64
    python plain.py weigh FOLDER     the run again with single weights a little off, in float64

A sequence that is left out leaves a batch of one less. One that weighs 1 + h has its loss
multiplied by that, the number of tokens staying what it was. Prints a line of JSON.
"""

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from meter import Meter, warm_up
from safetensors.torch import save_file
from setting import read
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM


class Loop:
    """A model and its optimizer, at some step of the run."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.setting, self.train, self.held = read(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model.config.use_cache = False
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), foreach=True)

    def rows(self, t: int) -> Tensor:
        """What step t is taken on."""
        return torch.arange(self.setting.batch) + self.setting.batch * t

    def step(self, t: int, rows: Tensor, weights: Tensor | None = None) -> None:
        """Step t on the sequences at `rows`.

        The loss is the model's own, which is of float32 whatever the model is of; with
        weights, all of one or one for each, it is in the model's precision.
        """
        tokens = self.train[rows]
        loss = (
            self.model(input_ids=tokens, labels=tokens).loss
            if weights is None
            else (weights * self.losses(tokens)).mean()
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.setting.rate(t)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def losses(self, tokens: Tensor) -> Tensor:
        """Mean loss of every sequence, shape (n,); accurate to the model's own precision."""
        logits = self.model(input_ids=tokens).logits[:, :-1]
        each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        return each.view(len(tokens), -1).mean(dim=1)

    @torch.no_grad()
    def target(self) -> float:
        return float(self.losses(self.held).double().mean())

    def state(self) -> Any:
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def restore(self, state: Any) -> None:
        model, optimizer = copy.deepcopy(state)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)

    def without(self, row: int) -> float:
        """Target loss at the end, from where it is now, with a sequence left out."""
        for t in range(row // self.setting.batch, self.setting.steps):
            rows = self.rows(t)
            self.step(t, rows[rows != row], torch.ones(()))
        return self.target()


def train(folder: Path) -> dict[str, Any]:
    meter = Meter()
    loop = Loop(folder, torch.float32)
    before = loop.target()  # warms up
    meter.begin("train")
    for t in range(loop.setting.steps):
        loop.step(t, loop.rows(t))
    return meter.found() | {"before": before, "target": loop.target()}


def leave(folder: Path, count: int, dtype: torch.dtype) -> dict[str, Any]:
    """Change of the target loss without each of some sequences, drawn by seed."""
    meter = Meter()
    loop = Loop(folder, dtype)
    steps, batch = loop.setting.steps, loop.setting.batch
    drawn = torch.randperm(steps * batch, generator=torch.Generator().manual_seed(7))
    chosen = sorted(drawn[:count].tolist())
    meter.begin("leave")
    ends = {}
    for t in range(steps):  # up to a removal the run is what it was
        left = [row for row in chosen if row // batch == t]
        start = loop.state() if left else None
        for row in left:
            ends[row] = loop.without(row)
            loop.restore(start)
        loop.step(t, loop.rows(t), torch.ones(()))
    end = loop.target()
    effects = torch.tensor([ends[row] - end for row in chosen], dtype=torch.float64)
    name = f"truth-{str(dtype).rpartition('.')[2]}.safetensors"
    save_file({"rows": torch.tensor(chosen), "effects": effects}, folder / name)
    return meter.found() | {"target": end}


def weigh(folder: Path, h: float = 1e-6) -> dict[str, Any]:
    """Central differences of the target loss by every sequence's weight."""
    loop = Loop(folder, torch.float64)
    start, found = loop.state(), []
    for row in range(len(loop.train)):
        ends = []
        for sign in (1, -1):
            loop.restore(start)
            for t in range(loop.setting.steps):
                rows = loop.rows(t)
                loop.step(t, rows, 1 + sign * h * (rows == row).double())
            ends.append(loop.target())
        found.append((ends[0] - ends[1]) / (2 * h))
    save_file({"by_weight": torch.tensor(found).double()}, folder / "differences.safetensors")
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain training, and what it says of sequences.")
    parser.add_argument("what", choices=["train", "leave", "weigh"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--examples", type=int, default=30)
    parser.add_argument("--dtype", default="float64")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    if arguments.what == "train":
        found = train(arguments.folder)
    elif arguments.what == "leave":
        found = leave(arguments.folder, arguments.examples, getattr(torch, arguments.dtype))
    else:
        found = weigh(arguments.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
