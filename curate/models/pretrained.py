"""Models and tokenizers of transformers', from a directory or the Hub."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import nn

from curate.datasets import HUB_NAME
from curate.errors import MissingExtraError, ModelError
from curate.models.from_path import foreign_code
from curate.models.fused import fuse_layers

DEFAULT_LENGTH = 1024
"""Tokens of a text where neither the recipe nor the model says less."""
ATTENTION = "eager"
"""Written out in matrix products. The others look into the mask to leave it out, which no
pass example by example can do (`jump: exact`), and gain nothing on the math backend."""
AUTO_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "causal_lm": "AutoModelForCausalLM",
        "sequence_classification": "AutoModelForSequenceClassification",
    }
)


def load_tokenizer(path: str) -> Any:
    """The tokenizer at `path`.

    Raises:
        ModelError: there is none. MissingExtraError: transformers is not installed.
    """
    tokenizer = _load("AutoTokenizer", path, "model.tokenizer")
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise ModelError(  # what transformers makes of a model's directory without a tokenizer
            f"model.tokenizer: {path}: holds no tokenizer; give the directory that does."
        )
    return tokenizer


def load_config(path: str) -> Any:
    """The configuration of the model at `path`, as `load_tokenizer` does."""
    return _load("AutoConfig", path, "model.pretrained")


def vocabulary_size(config: Any) -> int:
    """How many token ids a model knows."""
    return int(config.get_text_config().vocab_size)


def most_tokens(tokenizer: Any, config: Any) -> int | None:
    """The longest text that a model can take, where it or its tokenizer says so."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [n for n in (positions, tokenizer.model_max_length) if n and 0 < n < 10**9]
    return min(limits, default=None)


def pad_id(tokenizer: Any, config: Any) -> int:
    """What to pad with: the tokenizer's or the model's padding, or EOS, or 0; it is masked."""
    ids = (tokenizer.pad_token_id, config.pad_token_id, tokenizer.eos_token_id)
    known = (i for i in ids if isinstance(i, int) and 0 <= i < vocabulary_size(config))
    return next(known, 0)


def build_pretrained(
    path: str,
    objective: str,
    *,
    outputs: int,
    pad: int,
    from_scratch: bool = False,
    lora: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model at `path` with the head that `objective` needs, new weights from the global RNG.

    Args:
        outputs: classes, for sequence_classification.
        pad: id of padding, which classification heads look for.
        from_scratch: initialise the architecture anew instead of loading its weights.
        lora: rank, alpha and target_modules of adapters, see `add_lora`.

    Raises:
        ModelError: it cannot be loaded, or not as that kind of model.
    """
    labels = {} if objective == "causal_lm" else {"num_labels": outputs}
    kind = AUTO_CLASSES[objective]
    if from_scratch:
        auto, config = getattr(_transformers(), kind), load_config(path)
        for name, value in labels.items():
            setattr(config, name, value)
        with quiet(), foreign_code(f"model.pretrained: {path}"):
            module = auto.from_config(config, attn_implementation=ATTENTION)
    else:
        module = _load(kind, path, "model.pretrained", attn_implementation=ATTENTION, **labels)
    module.config.pad_token_id = pad
    module.config.use_cache = False
    fuse_layers(module)
    return module if lora is None else add_lora(module, objective, **lora)


def add_lora(
    module: Any, objective: str, *, rank: int, alpha: float, target_modules: list[str] | None
) -> nn.Module:
    """Low-rank adapters in a model (peft); they, and a new classification head, are trained.

    Raises:
        ModelError: peft finds no such layers. MissingExtraError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "model.lora", "lora") from error
    task = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}[objective]
    with quiet(), foreign_code("model.lora: peft"):
        settings = peft.LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=target_modules, task_type=task
        )
        adapted: nn.Module = peft.get_peft_model(module, settings)
    return adapted


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting what it loads and tokenises."""
    log = _transformers().utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _load(kind: str, path: str, key: str, **arguments: Any) -> Any:
    auto = getattr(_transformers(), kind)
    if not os.path.isdir(path) and not HUB_NAME.fullmatch(path):
        raise ModelError(f"{key}: {path}: no such directory.")
    try:
        with quiet(), foreign_code(f"{key}: loading {path}"):
            return auto.from_pretrained(path, **arguments)
    except ModelError as error:
        if not isinstance(error.__cause__, OSError | ValueError):
            raise
        where = "" if os.path.isdir(path) else "no such directory, and from the Hub: "
        reason = " ".join(str(error.__cause__).split())
        raise ModelError(f"{key}: {path}: cannot be loaded: {where}{reason}") from error


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "model.pretrained", "hf") from error
    return transformers
