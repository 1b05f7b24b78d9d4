"""What faults are planted in: a recipe on numbers, one on texts, further rows, a loop's log."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from curate import LookAheadLoader, load_recipe, read_log, run_select

NUMBERS = """
data:
  train: rows.parquet
  columns: {features: [x], label: label}
  validation: {fraction: 0.2}
  test: {fraction: 0.2}
  label_noise: {fraction: 0.2}
model: {kind: mlp, hidden: [8]}
training: {epochs: 2, batch_size: 16, optimizer: {kind: adamw, lr: 1e-2}}
selection: {horizon: 4, keep: {fraction: 0.5}, rounds: 1}
evaluation: {seeds: [0, 1], against: [everything, loss]}
"""
TEXTS = """
data:
  train: rows.jsonl
  columns: {text: text}
  validation: {fraction: 0.2}
  test: {fraction: 0.2}
model: {pretrained: tiny}
objective: causal_lm
training: {epochs: 2, batch_size: 8, optimizer: {kind: adamw, lr: 1e-2}}
selection: {horizon: 4, keep: {fraction: 0.5}, rounds: 1}
evaluation: {seeds: [0], against: [everything]}
"""
WORDS = ["a", "the", "fox", "dog", "sees", "runs", "over", "red", "blue", "house", "and", "then"]
EPOCHS, COUNT = 8, 128


def rows(count: int = 120) -> Dataset:
    """Points in four dimensions, labelled by the sign of the first."""
    x = np.random.default_rng(0).normal(size=(count, 4))
    labels = ["up" if value > 0 else "down" for value in x[:, 0]]
    notes = [f"row {k}" for k in range(count)]
    return Dataset.from_dict({"x": x.tolist(), "label": labels, "note": notes})


def make_numbers() -> None:
    """Write data and a recipe into the working directory."""
    rows().to_parquet("rows.parquet")
    Path("recipe.yaml").write_text(NUMBERS)


def make_further() -> None:
    """Write further rows, and what a selection has learned to score them with."""
    rows(400).to_parquet("rows.parquet")
    rows(4000).to_parquet("further.parquet")
    Path("recipe.yaml").write_text(NUMBERS)
    settings = ("score={sample: 150}", "evaluation=null", "selection.judge=false")
    run_select(load_recipe(Path("recipe.yaml"), settings), Path("kept"))


def make_texts() -> None:
    """Write texts, a recipe and a GPT-2 of a few thousand parameters."""
    write_model(Path("tiny"))
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, 12)) for _ in range(72)]
    Dataset.from_dict({"text": texts}).to_json("rows.jsonl")
    Path("recipe.yaml").write_text(TEXTS)


def write_model(folder: Path) -> None:
    """A GPT-2 with a tokenizer that knows bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {piece: number for number, piece in enumerate(["<end>", *alphabet])}
    bpe = Tokenizer(models.BPE(vocab=words, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>").save_pretrained(str(folder))
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 96}
    config = GPT2Config(vocab_size=len(words), bos_token_id=None, eos_token_id=0, **sizes)
    GPT2LMHeadModel(config).save_pretrained(str(folder))


def loop() -> int:
    """A training loop that notes where it is after every epoch, and goes on from there."""
    torch.manual_seed(0)
    x = torch.randn(COUNT, 4)
    data = TensorDataset(x, (x[:, 0] > 0).long(), torch.arange(COUNT))
    model = nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    point, first = Path("point.pt"), 0
    if point.exists():
        saved = torch.load(point, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        first = saved["epoch"]
    for epoch in range(first, EPOCHS):
        chosen = LookAheadLoader(
            DataLoader(data, batch_size=16, shuffle=True),
            model,
            optimizer,
            losses,
            [x[:40], (x[:40, 0] > 0).long(), torch.arange(40)],
            horizon=4,
            keep=0.5,
            log=f"log/{epoch:03d}",
            row=lambda batch: batch[2],
        )
        for batch in chosen:
            optimizer.zero_grad()
            losses(model, batch).mean().backward()
            optimizer.step()
        chosen.settle()
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(states | {"random": torch.get_rng_state(), "epoch": epoch + 1}, "point.part")
        os.replace("point.part", point)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    Path("weights").write_bytes(flat.numpy().tobytes())
    Path("logged").write_text(_logged())
    return 0


def losses(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """One loss per example."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _logged() -> str:
    """A digest of the log: of every epoch what its last part has, of which all others are parts."""
    digest = hashlib.sha256()
    for folder in sorted(Path("log").iterdir()):
        log = read_log(folder).drop("seconds")
        parts = [part.drop("run") for part in log.partition_by("run", maintain_order=True)]
        whole = parts[-1]
        for part in parts[:-1]:
            beside = whole[: len(part)].drop(
                "realized", "predicted", "target_loss", "horizon", "steps", "effort"
            )
            if not part.select(beside.columns).equals(beside):
                return f"{folder}: what a killed run logged is not what happened"
        digest.update(whole.write_csv().encode())
    return digest.hexdigest()


def outcome_of_loop(at: Path) -> dict[str, str]:
    """Hashes of the weights in the end and of the log."""
    weights = hashlib.sha256((at / "weights").read_bytes()).hexdigest()
    return {"weights": weights, "log": (at / "logged").read_text()}


MAKE: dict[str, Callable[[], None]] = {
    "select": make_numbers,
    "further": make_further,
    "text": make_texts,
    "loop": lambda: None,
}
"""What writes the data of a run, by the run's name."""
