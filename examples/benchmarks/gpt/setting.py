"""What is learnt: two languages of chained tokens, and the folder that every process reads.

A language is a Markov chain: each token has 8 tokens that may follow, popular ones more often
than others, in fixed shares. Half of the sequences to train on are of the first
language, half of the second; the target is of the first. So there is something to learn, and
candidates that differ.

    python setting.py FOLDER '{"tied": true}'

writes the folder, with fields of `Setting` other than their defaults.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import GPT2Config, PreTrainedTokenizerFast

from curate.models import build_pretrained

FOLLOWERS = 8


@dataclass(frozen=True)
class Setting:
    """Sizes of the model and of the run, and what is drawn by seed.

    lr: after `warmup` steps in which it grows by the same amount from step to step.
    """

    layers: int = 4
    width: int = 256
    heads: int = 4
    vocabulary: int = 2048
    length: int = 128
    batch: int = 16
    steps: int = 32
    held: int = 16
    lr: float = 1e-3
    warmup: int = 8
    tied: bool = False
    seed: int = 0

    def rate(self, t: int) -> float:
        """The learning rate of step t."""
        return self.lr * min(1.0, (t + 1) / self.warmup)


def sequences(language: int, count: int, setting: Setting, generator: torch.Generator) -> Tensor:
    """Token ids of `count` sequences of a language, shape (count, length)."""
    own = torch.Generator().manual_seed(1000 + language)
    vocabulary = setting.vocabulary
    popularity = 1 / (1 + torch.randperm(vocabulary, generator=own).double())
    followers = popularity.expand(vocabulary, -1).multinomial(FOLLOWERS, generator=own)
    shares = 0.6 ** torch.arange(FOLLOWERS).double()
    tokens = [popularity.multinomial(count, replacement=True, generator=generator)]
    for _ in range(setting.length - 1):
        choice = shares.multinomial(count, replacement=True, generator=generator)
        tokens.append(followers[tokens[-1], choice])
    return torch.stack(tokens, dim=1)


def prepare(folder: Path, setting: Setting) -> None:
    """Write the model, with a tokenizer, the tokens and the setting to a folder.

    The weights are those that `curate select` initialized with `from_scratch`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(setting.seed)
    count = setting.batch * setting.steps
    train = torch.cat([sequences(k, count // 2, setting, generator) for k in range(2)])
    order = torch.randperm(len(train), generator=generator)
    held = sequences(0, setting.held, setting, generator)
    save_file({"train": train[order], "held": held}, folder / "tokens.safetensors")

    config = GPT2Config(
        vocab_size=setting.vocabulary,
        n_positions=setting.length,
        n_embd=setting.width,
        n_layer=setting.layers,
        n_head=setting.heads,
        tie_word_embeddings=setting.tied,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    config.save_pretrained(folder)
    torch.manual_seed(setting.seed)
    module = build_pretrained(str(folder), "causal_lm", outputs=0, pad=0, from_scratch=True)
    module.save_pretrained(folder)  # type: ignore[operator]  # a module of transformers'
    words = {str(token): token for token in range(setting.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    (folder / "setting.json").write_text(json.dumps(asdict(setting)))


def read(folder: Path) -> tuple[Setting, Tensor, Tensor]:
    """The setting, tokens to train on in the order of training, and those of the target."""
    tokens = load_file(folder / "tokens.safetensors")
    setting = Setting(**json.loads((folder / "setting.json").read_text()))
    return setting, tokens["train"], tokens["held"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a model and tokens to train it on.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("fields", nargs="?", type=json.loads, default={})
    arguments = parser.parse_args()
    prepare(arguments.folder, Setting(**arguments.fields))


if __name__ == "__main__":
    main()
