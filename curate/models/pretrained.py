"""Models and tokenizers of transformers, from a directory or the Hub."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from curate.errors import ModelError
from curate.models.from_path import foreign_code
from curate.models.hf import load, quiet, transformers
from curate.models.lora import add_lora, load_adapter

DEFAULT_LENGTH = 1024
"""Tokens of a text where neither the recipe nor the model says less."""
HEADS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "causal_lm": ("AutoModelForCausalLM", "CAUSAL_LM"),
        "preference": ("AutoModelForCausalLM", "CAUSAL_LM"),
        "sequence_classification": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    }
)
"""Objective -> the class of transformers, and the task of peft, whose head it needs."""


def load_tokenizer(path: str, *, trust: bool = False) -> Any:
    """The tokenizer at `path`; `trust`: see `load`.

    Raises:
        ModelError: there is none. MissingExtraError: transformers is not installed.
    """
    tokenizer = load("AutoTokenizer", path, "model.tokenizer", trust=trust)
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise ModelError(  # what transformers makes of a model's directory without a tokenizer
            f"model.tokenizer: {path}: holds no tokenizer; give the directory that does."
        )
    return tokenizer


def load_config(path: str, *, trust: bool = False) -> Any:
    """The configuration of the model at `path`; `trust`: see `load`.

    Raises:
        ModelError: there is none, or adapters. MissingExtraError: transformers is not installed.
    """
    if Path(path, "adapter_config.json").is_file():
        raise ModelError(
            f"model.pretrained: {path}: holds adapters; give the model that they were trained in, "
            "and this as model.adapter."
        )
    return load("AutoConfig", path, "model.pretrained", trust=trust)


def vocabulary_size(config: Any) -> int:
    """How many token ids a model knows."""
    return int(config.get_text_config().vocab_size)


def most_tokens(tokenizer: Any, config: Any) -> int | None:
    """The longest text that a model can take, in tokens, if it or its tokenizer says so."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [n for n in (positions, tokenizer.model_max_length) if n and 0 < n < 10**9]
    return min(limits, default=None)


def pad_id(tokenizer: Any, config: Any) -> int:
    """The id to pad with: the tokenizer's or the model's, or that of EOS, or 0; it is masked."""
    ids = (tokenizer.pad_token_id, config.pad_token_id, tokenizer.eos_token_id)
    usable = (i for i in ids if isinstance(i, int) and 0 <= i < vocabulary_size(config))
    return next(usable, 0)


def build_pretrained(
    path: str,
    objective: str,
    *,
    outputs: int,
    pad: int,
    from_scratch: bool = False,
    lora: Mapping[str, Any] | None = None,
    adapter: str | None = None,
    checkpointing: bool = False,
    vectorized: bool = False,
    trust: bool = False,
) -> nn.Module:
    """The model at `path` with the head that `objective` needs, new weights from the global RNG.

    Args:
        outputs: classes, for sequence_classification.
        pad: id of padding, which classification heads look for.
        from_scratch: initialize the architecture anew instead of loading its weights.
        lora: rank, alpha and target_modules of new adapters, see `add_lora`.
        adapter: the path of trained ones to use instead, see `load_adapter`.
        checkpointing: recompute layers on the way back, see `save_activations`.
        vectorized: attention in matrix products, because a pass example by example cannot look
            into the mask as kernels do.
        trust: run code that comes with it, see `load`.

    Raises:
        ModelError: it cannot be loaded, or not as that kind of model.
    """
    kind, task = HEADS[objective]
    labels = {"num_labels": outputs} if objective == "sequence_classification" else {}
    attention = {"attn_implementation": "eager"} if vectorized else {}
    if from_scratch:
        auto, config = getattr(transformers(), kind), load_config(path, trust=trust)
        config.update(labels)
        with quiet(), foreign_code(f"model.pretrained: {path}"):
            module = auto.from_config(config, trust_remote_code=trust, **attention)
    else:
        module = load(kind, path, "model.pretrained", trust=trust, **attention, **labels)
    module.config.pad_token_id = pad
    module.config.use_cache = False
    if adapter is not None:
        module = load_adapter(module, task, adapter)
    elif lora is not None:
        module = add_lora(module, task, **lora)
    if checkpointing:
        save_activations(module)
    built: nn.Module = module
    return built


def save_activations(module: Any) -> None:
    """Have a model of transformers recompute its layers on the way back, in its own way.

    Raises:
        ModelError: it cannot.
    """
    enable = getattr(module, "activation_checkpointing_enable", None)  # since transformers 5
    with foreign_code("training.checkpointing"):
        (enable or module.gradient_checkpointing_enable)({"use_reentrant": False})
