"""Look-ahead in Hugging Face's Trainer: one mixin.

A small BERT learns which chapter of Python's documentation a passage is from,
with 40 % of the training labels wrong; gradients accumulated over two batches.
The same Trainer twice, plain and with the mixin, and the loss on clean test
passages after each.

    python examples/hf_trainer.py [--seeds 0 1 2] [--horizon 4]
"""

import argparse
import tempfile
from collections import Counter
from pydoc_data.topics import topics
from statistics import mean
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from curate import LookAheadMixin

CHAPTERS = ("specialnames", "compound", "types", "debugger")
WORDS = 24  # of a passage


class LookAheadTrainer(LookAheadMixin, Trainer):
    """All that it takes."""


def passages() -> tuple[Dataset, int]:
    """Every passage of the chapters: input_ids, labels. The size of the vocabulary."""
    chapters = {name: topics[name].lower().split() for name in CHAPTERS if name in topics}
    counts = Counter(word for words in chapters.values() for word in words)
    known = {word: k for k, (word, n) in enumerate(counts.most_common(), start=2) if n > 1}
    rows = [
        {"input_ids": [known.get(word, 1) for word in words[i : i + WORDS]], "labels": label}
        for label, words in enumerate(chapters.values())
        for i in range(0, len(words) - WORDS, WORDS)
    ]
    return Dataset.from_list(rows), len(known) + 2


def split(data: Dataset, seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """Training passages with wrong labels, clean validation and test passages."""
    data = data.shuffle(seed=seed)
    clean = data.select(range(400, len(data)))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(clean["labels"])
    count = int(labels.max()) + 1
    wrong = torch.rand(len(labels), generator=generator) < 0.4
    other = (labels + torch.randint(1, count, labels.shape, generator=generator)) % count
    noisy = clean.remove_columns("labels").add_column(
        "labels", torch.where(wrong, other, labels).tolist()
    )
    return noisy, data.select(range(200)), data.select(range(200, 400))


def run(seed: int, horizon: int, select: bool) -> float:
    """Test loss after the training."""
    set_seed(seed)
    data, vocabulary = passages()
    train, validation, test = split(data, seed)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=WORDS,
        num_labels=len(CHAPTERS),
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=6,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            warmup_steps=5,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            per_device_eval_batch_size=200,
            seed=seed,
        )
        given: dict[str, Any] = {"args": arguments, "train_dataset": train, "eval_dataset": test}
        model = BertForSequenceClassification(config)
        trainer = (
            LookAheadTrainer(
                model, **given, targets=validation, look_ahead={"horizon": horizon, "keep": 0.5}
            )
            if select
            else Trainer(model, **given)
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return float(trainer.evaluate()["eval_loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain against selected training, in a Trainer.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--horizon", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    for name, select in (("plain", False), ("selected", True)):
        found = [run(seed, arguments.horizon, select) for seed in arguments.seeds]
        print(f"{name:9s} test loss {mean(found):.3f}  ({', '.join(f'{x:.3f}' for x in found)})")


if __name__ == "__main__":
    main()
