"""Texts from Python's documentation, a tiny GPT-2 and its tokenizer, and recipes for them."""

import atexit
import re
import shutil
import tempfile
from functools import cache
from itertools import accumulate
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import peft
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from curate.models import quiet

VOCABULARY, POSITIONS, EOS = 320, 64, "<|end|>"
RECIPE = """
data:
  train: texts.parquet
  columns: {text: text}
  validation: {fraction: 0.2}
  test: {fraction: 0.2}
  max_length: 24
model: {pretrained: tiny}
objective: causal_lm
training: {epochs: 2, batch_size: 8, optimizer: {kind: adamw, lr: 3e-3}}
selection: {horizon: 4, rounds: 2, keep: {fraction: 0.5}, judge: false}
"""


def passages(count: int) -> list[str]:
    """Passages of 3 to 30 words."""
    words = re.findall(r"\S+", " ".join(topics[name] for name in ("class", "strings", "numbers")))
    sizes = [3 + (7 * i) % 28 for i in range(count)]
    ends = accumulate(sizes)
    return [" ".join(words[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def texts(count: int = 60) -> Dataset:
    """Every form that text can have in a recipe, and a label."""
    rows = passages(count)
    halves = [(row[: len(row) // 3], row[len(row) // 3 :]) for row in rows]
    return Dataset.from_dict(
        {
            "text": rows,
            "prompt": [first for first, _ in halves],
            "completion": [second for _, second in halves],
            "messages": [
                [{"role": "user", "content": a}, {"role": "assistant", "content": b}]
                for a, b in halves
            ],
            "label": ["long" if len(row) > 90 else "short" for row in rows],
            "note": [f"row {i}" for i in range(count)],
        }
    )


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with an end of text and no padding."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(passages(60), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **({"eos_token": EOS} | special))


def gpt2(vocabulary: int = VOCABULARY, dropout: float = 0.0, layers: int = 1) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_embd=32,
            n_layer=layers,
            n_head=2,
            n_positions=POSITIONS,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
            bos_token_id=None,
            eos_token_id=0,
        )
    )


def llama() -> LlamaForCausalLM:
    """Rotary positions, grouped queries, and a head of its own."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
        )
    )


def bert() -> BertForSequenceClassification:
    """Attention both ways, and dropout."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=POSITIONS,
        )
    )


def write_adapter(path: Path, **model: Any) -> None:
    """Adapters for `gpt2`, as they are left by training."""
    settings = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    torch.manual_seed(1)
    with quiet():
        adapted = peft.get_peft_model(gpt2(**model), settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # 0 in new ones
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(str(path))


def write(folder: Path, **model: Any) -> None:
    """The dataset, the model with its tokenizer, and the recipe."""
    shutil.copytree(_written(**model), folder, dirs_exist_ok=True)


@cache
def _written(**model: Any) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="curate-words-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    texts().to_parquet(str(folder / "texts.parquet"))
    gpt2(**model).save_pretrained(str(folder / "tiny"))
    tokenizer().save_pretrained(str(folder / "tiny"))
    (folder / "text.yaml").write_text(RECIPE)
    return folder
