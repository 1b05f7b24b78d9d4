"""Does look-ahead find broken text, and does a language model train better without it?

Half of the candidates are broken on purpose; the targets and the test are clean:

    wikitext   paragraphs of WikiText-2 (valid), the words of every second one shuffled
    shuffled   questions and worked answers of GSM8K, the words of every second answer shuffled
    swapped    the same, every second answer that of another question

Of questions and answers, the loss is that of the answer.

A GPT-2 of 2 layers x 128 with a byte-pair tokenizer trained on the clean part, both from scratch,
is made in --out, and `curate select` runs on it: half is kept, and the model is retrained from
scratch on what was kept, on everything and on a random half. Reported: AUROC of the score for
the broken rows, and test loss per token (3 seeds).

    python examples/benchmarks/text_pollution.py --data DIR --out DIR2

DIR has `wikitext2_valid_test.parquet` (text, split) and `gsm8k.parquet` (question, answer,
split). Needs transformers (the extra `hf`). On one core eight minutes for wikitext, and half an
hour for the others, whose texts are four times as long.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from curate.output.words import columns, evaluation_cells
from curate.pipeline.select import run_select
from curate.recipe import check_recipe
from curate.selection.ranking import auroc

VOCABULARY, LENGTH = 1024, 64
COUNTS = {"train": 640, "validation": 96, "test": 256}


def wikitext(folder: Path, random: np.random.Generator) -> dict[str, pl.DataFrame]:
    """Paragraphs of 30 words and more, cut after 45."""
    table = pl.read_parquet(folder / "wikitext2_valid_test.parquet")
    table = table.filter(pl.col("split") == "valid")
    lines = [words for text in table["text"] if len(words := text.split()) >= 30]
    order = random.permutation(len(lines))
    texts = [lines[k][:45] for k in order]
    broken = [bool(k % 2) and k < COUNTS["train"] for k in range(len(texts))]
    shown = [
        shuffled(words, random) if bad else " ".join(words)
        for words, bad in zip(texts, broken, strict=True)
    ]
    return divide(pl.DataFrame({"text": shown, "broken": broken}))


def gsm8k(kind: str, folder: Path, random: np.random.Generator) -> dict[str, pl.DataFrame]:
    """Questions with answers, every second one `shuffled` or `swapped`."""
    table = pl.read_parquet(folder / "gsm8k.parquet").filter(pl.col("split") == "train")
    table = table.sample(sum(COUNTS.values()), seed=int(random.integers(2**31)), shuffle=True)
    right = table["answer"].to_list()
    answers = [*right]
    places = np.arange(1, COUNTS["train"], 2)
    for place, other in zip(places, np.roll(places, 1), strict=True):
        answers[place] = (
            right[other] if kind == "swapped" else shuffled(right[place].split(), random)
        )
    broken = np.isin(np.arange(len(table)), places)
    return divide(
        pl.DataFrame({"prompt": table["question"], "completion": answers, "broken": broken})
    )


def shuffled(words: list[str], random: np.random.Generator) -> str:
    return " ".join(random.permutation(words).tolist())


def divide(table: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Train, validation and test, in this order."""
    ends = np.cumsum([0, *COUNTS.values()])
    if len(table) < ends[-1]:
        raise SystemExit(f"only {len(table)} rows, but {ends[-1]} are needed")
    return {name: table[a:b] for name, a, b in zip(COUNTS, ends[:-1], ends[1:], strict=True)}


def make_model(out: Path, parts: dict[str, pl.DataFrame]) -> None:
    """An untrained GPT-2 and the tokenizer for it."""
    clean = parts["train"].filter(~pl.col("broken"))
    texts = [text for name in clean.columns if name != "broken" for text in clean[name]]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.save_pretrained(out)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=4 * LENGTH,
        n_embd=128,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(out)


def run(kind: str, folder: Path, out: Path, horizon: int | str, rounds: int) -> dict[str, Any]:
    """Select, retrain, report."""
    out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    parts = wikitext(folder, random) if kind == "wikitext" else gsm8k(kind, folder, random)
    for name, table in parts.items():
        table.write_parquet(out / f"{name}.parquet")
    make_model(out / "model", parts)
    columns = (
        {"text": "text"} if kind == "wikitext" else {"prompt": "prompt", "completion": "completion"}
    )
    recipe = check_recipe(
        {
            "data": {name: str(out / f"{name}.parquet") for name in parts}
            | {"columns": columns, "max_length": LENGTH if kind == "wikitext" else 4 * LENGTH},
            "model": {"pretrained": str(out / "model"), "from_scratch": True},
            "objective": "causal_lm",
            "training": {
                "epochs": 4,
                "batch_size": 16,
                "clip_norm": 1.0,
                "optimizer": {"kind": "adamw", "lr": 2e-3},
                "schedule": {"kind": "cosine", "warmup_steps": 10},
            },
            "selection": {"horizon": horizon, "rounds": rounds, "keep": {"fraction": 0.5}},
            "evaluation": {"seeds": [0, 1, 2], "against": ["everything", "random", "loss"]},
        }
    )
    summary = run_select(recipe, out / "selected", overwrite=True)
    scores = pl.read_parquet(out / "selected" / "scores.parquet").sort("row")
    broken = parts["train"]["broken"].to_numpy()
    kept = scores["kept"].to_numpy()
    return summary | {
        "auroc": auroc(-scores["score"].to_numpy(), broken),
        "influence_auroc": auroc(-scores["influence"].to_numpy(), broken),
        "broken_kept": float(broken[kept].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Broken text, found and left out.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    kinds = ["wikitext", "shuffled", "swapped"]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--horizon", default="4")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    horizon = arguments.horizon if arguments.horizon == "full" else int(arguments.horizon)
    for kind in arguments.kinds:
        found = run(kind, arguments.data, arguments.out / kind, horizon, arguments.rounds)
        print(
            f"{kind}: K = {horizon}, {arguments.rounds} rounds, {found['steps']} steps, half kept"
        )
        print("\n".join(columns(evaluation_cells(found["evaluation"]))))
        print(
            f"broken rows among those kept: {found['broken_kept']:.1%} (50 % of all); AUROC of the "
            f"score {found['auroc']:.3f}, of the mean influence {found['influence_auroc']:.3f}"
        )
        print(json.dumps(found["seconds"]), flush=True)


if __name__ == "__main__":
    main()
