"""Trainers of TRL on a tiny Llama whose language counts: each word is the one after the last."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from curate import LookAheadMixin
from tests.integrations.loop import QUIET

WORDS, SPECIAL = 20, ("<pad>", "<eos>", "<unk>", "user", "assistant")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }} <eos>{% endgeneration %}{% else %}{{ m['content'] }} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


class LookAheadSFT(LookAheadMixin, SFTTrainer):  # type: ignore[misc]
    pass


class LookAheadDPO(LookAheadMixin, DPOTrainer):  # type: ignore[misc]
    pass


def tokenizer() -> Any:
    words = [*SPECIAL, *(f"w{i}" for i in range(WORDS))]
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=model, **names)
    made.chat_template = TEMPLATE
    return made


def llama() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(SPECIAL) + WORDS,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def texts(kind: str, count: int, bad: float = 0.0, seed: int = 0) -> Dataset:
    """Rows of a kind; in the bad ones words are at random, or the pair is swapped."""
    generator, rows = np.random.default_rng(seed), []

    def say(words: Any) -> str:
        return " ".join(f"w{word}" for word in words)

    for row in range(count):
        start, length = generator.integers(WORDS), generator.integers(5, 10)
        right = (start + np.arange(length)) % WORDS
        wrong = np.concatenate([right[:2], generator.integers(WORDS, size=length - 2)])
        is_bad = generator.random() < bad
        said, other = (wrong, right) if is_bad else (right, wrong)
        first, rest = say(said[:2]), say(said[2:])
        made: dict[str, Any] = {"text": {"text": say(said)}}.get(kind, {})
        if kind == "completion":
            made = {"prompt": first, "completion": f" {rest}"}
        elif kind == "chat":
            turns = (("user", first), ("assistant", rest))
            made = {"messages": [{"role": role, "content": content} for role, content in turns]}
        elif kind == "preference":
            made = {"prompt": first, "chosen": f" {rest}", "rejected": f" {say(other[2:])}"}
        rows.append(made | {"row": row, "bad": is_bad})
    return Dataset.from_list(rows)


def trainer(
    folder: Path,
    kind: str,
    data: Dataset,
    look_ahead: dict[str, Any] | None = None,
    *,
    lora: bool = False,
    targets: Any = None,
    eval_dataset: Any = None,
    **arguments: Any,
) -> Any:
    """A trainer for rows of a kind, with look-ahead if it has options."""
    paired, ahead = kind == "preference", look_ahead is not None
    config: Any = DPOConfig if paired else SFTConfig
    settings: dict[str, Any] = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,  # a clipped gradient does not say how large it was
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "bf16": False,
    }
    given: dict[str, Any] = {"eval_dataset": eval_dataset}
    if ahead:
        targets = texts(kind, 12, seed=5) if targets is None else targets
        given |= {"targets": targets, "look_ahead": look_ahead}
    if lora:
        given["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    elif paired and not arguments.get("precompute_ref_log_probs"):
        given["ref_model"] = llama()
    made: Any = {
        (False, False): SFTTrainer,
        (False, True): LookAheadSFT,
        (True, False): DPOTrainer,
        (True, True): LookAheadDPO,
    }[paired, ahead]
    return made(
        model=llama(),
        args=config(
            output_dir=str(folder),
            **QUIET | settings | arguments,
        ),
        train_dataset=data,
        processing_class=tokenizer(),
        **given,
    )


class LookAheadTrainer(LookAheadMixin, Trainer):  # type: ignore[misc]
    pass


def flattening(folder: Path, look_ahead: dict[str, Any]) -> Any:
    """A plain Trainer whose collator lays texts end to end."""
    words = tokenizer()

    def encoded(count: int, bad: float, seed: int) -> Dataset:
        data = texts("text", count, bad, seed)
        return Dataset.from_dict({"input_ids": words(data["text"][:])["input_ids"]})

    return LookAheadTrainer(
        llama(),
        TrainingArguments(
            output_dir=str(folder),
            **QUIET,
            save_strategy="no",
            num_train_epochs=1,
            max_grad_norm=0.0,
        ),
        data_collator=DataCollatorWithFlattening(),
        train_dataset=encoded(32, 0.5, 0),
        targets=encoded(12, 0.0, 5),
        look_ahead=look_ahead,
    )
