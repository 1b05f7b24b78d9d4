"""Make texts of several domains, one of them wanted, and a small GPT-2 with its tokenizer.

The domain is the chapter of Python's documentation that a passage is from. Of the training
passages one in four is about the debugger; the target and the test set are all about it. Writes
train.parquet, target.parquet, test.parquet and the model, tiny/.

    python make_texts.py [--to DIR]
"""

import argparse
import re
from pathlib import Path
from pydoc_data.topics import topics

import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WANTED = "debugger"
OTHERS = ("specialnames", "compound", "formatstrings", "types")
WORDS, EOS = 16, "<|end|>"


def passages(chapter: str) -> list[str]:
    """A chapter in pieces of so many words."""
    words = re.findall(r"\S+", topics[chapter])
    return [" ".join(words[i : i + WORDS]) for i in range(0, len(words) - WORDS + 1, WORDS)]


def save_model(texts: list[str], folder: Path) -> None:
    """An untrained GPT-2 of 33,000 parameters, and a tokenizer made of the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[EOS],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512,
        n_positions=128,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the data and the model of this example.")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent)
    folder: Path = parser.parse_args().to
    disable_progress_bars()
    wanted = passages(WANTED)
    own = len(wanted) // 3
    others = [(text, name) for name in OTHERS for text in passages(name)]
    step = max(1, len(others) // (3 * own))
    train = [(text, WANTED) for text in wanted[0::3]] + others[::step][: 3 * own]
    for name, rows in (
        ("train", train),
        ("target", [(text, WANTED) for text in wanted[1::3]]),
        ("test", [(text, WANTED) for text in wanted[2::3]]),
    ):
        texts, domains = map(list, zip(*rows, strict=True))
        Dataset.from_dict({"text": texts, "domain": domains}).to_parquet(
            str(folder / f"{name}.parquet")
        )
    save_model([text for text, _ in train], folder / "tiny")


if __name__ == "__main__":
    main()
