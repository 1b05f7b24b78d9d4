"""From text columns to token ids, and to the tokens that the loss is about."""

import re
from collections.abc import Iterator
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset

from curate.datasets.columns import refuse_nulls, require_columns
from curate.datasets.tokens import Encoded
from curate.errors import DataError

TOGETHER = 1000
"""Rows that are read and tokenized at a time."""
MARKS_ASSISTANT = re.compile(r"\{%-?\s*generation\b")


def encode_texts(data: Dataset, name: str, source: str, tokenizer: Any) -> Iterator[Encoded]:
    """A column of texts to predict token by token: BOS and EOS around each, if there are any.

    Raises:
        DataError: the column does not hold strings, or one is null.
    """
    bos, eos = _ends(tokenizer)
    for texts in _strings(data, [name], source):
        for ids in _plain(tokenizer, texts[name]):
            yield _framed(bos, [], ids, eos)


def encode_completions(
    data: Dataset, prompt: str, completion: str, source: str, tokenizer: Any
) -> Iterator[Encoded]:
    """Texts to go on from and how they go on; only the latter, and EOS, is learned.

    The two are tokenized apart, as they are where a model is asked to go on.
    """
    bos, eos = _ends(tokenizer)
    for texts in _strings(data, [prompt, completion], source):
        prompts, completions = (_plain(tokenizer, texts[name]) for name in (prompt, completion))
        for before, after in zip(prompts, completions, strict=True):
            yield _framed(bos, before, after, eos)


def encode_messages(data: Dataset, name: str, source: str, tokenizer: Any) -> Iterator[Encoded]:
    """Conversations in the tokenizer's chat template, which says what ends a turn.

    What the assistant says is learned where the template marks it (`{% generation %}`),
    everything otherwise.

    Raises:
        DataError: there is no template, it refuses a row, or the column does not hold lists of
            {role, content}.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise DataError(
            "data.columns.messages: the tokenizer has no chat template (or several); give one "
            "that has, or a text column."
        )
    marked = MARKS_ASSISTANT.search(template) is not None
    _require_messages(data, name, source)
    for row, messages in enumerate(data.select_columns([name])):
        turns = [{k: v for k, v in turn.items() if v is not None} for turn in messages[name]]
        try:
            found = tokenizer.apply_chat_template(
                turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=marked
            )
        except Exception as error:  # a template raises whatever it likes
            raise DataError(
                f"{source}: column {name}: the chat template cannot take row {row}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}."
            ) from error
        ids = found["input_ids"]
        yield Encoded(
            ids, [m == 1 for m in found["assistant_masks"]] if marked else [True] * len(ids)
        )


def encode_whole(
    data: Dataset, name: str, source: str, tokenizer: Any, max_length: int
) -> Iterator[Encoded]:
    """A column of texts to classify, with the tokenizer's own special tokens, cut as it cuts."""
    for texts in _strings(data, [name], source):
        for text, ids in zip(texts[name], tokenizer(texts[name])["input_ids"], strict=True):
            cut = len(ids) > max_length
            if cut:
                ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
            yield Encoded(ids, [True] * len(ids), cut)


def shorten(texts: Iterator[Encoded], max_length: int) -> Iterator[Encoded]:
    """The texts, each cut after `max_length` tokens."""
    for ids, learned, cut in texts:
        yield Encoded(ids[:max_length], learned[:max_length], cut or len(ids) > max_length)


def _plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _ends(tokenizer: Any) -> tuple[list[int], list[int]]:
    """BOS where the tokenizer puts one before a text, and EOS where it has one."""
    bos, eos = [tokenizer.bos_token_id], tokenizer.eos_token_id
    return bos if tokenizer("")["input_ids"][:1] == bos else [], [] if eos is None else [eos]


def _framed(bos: list[int], before: list[int], learned: list[int], eos: list[int]) -> Encoded:
    """A text between BOS and EOS, unless it has them already; nothing around nothing."""
    if not learned:
        return Encoded(before, [False] * len(before))
    head = before if (before + learned)[:1] == bos else bos + before
    tail = learned if learned[-1:] == eos else learned + eos
    return Encoded(head + tail, [False] * len(head) + [True] * len(tail))


def _strings(data: Dataset, names: list[str], source: str) -> Iterator[dict[str, list[str]]]:
    require_columns(data, names, source)
    for name in names:
        feature = data.features[name]
        kind = feature.dtype if isinstance(feature, datasets.Value) else None
        if kind not in ("string", "large_string"):
            raise DataError(f"{source}: column {name} holds {feature}; text must be strings.")
        refuse_nulls(data, name, source)
    plain = data.select_columns(names).with_format(None)
    for start in range(0, len(plain), TOGETHER):
        yield plain[start : start + TOGETHER]


def _require_messages(data: Dataset, name: str, source: str) -> None:
    require_columns(data, [name], source)
    kind = data.features.arrow_schema.field(name).type
    turn = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    fields = {turn[i].name for i in range(turn.num_fields)} if pa.types.is_struct(turn) else set()
    if turn is kind or not {"role", "content"} <= fields:
        raise DataError(
            f"{source}: column {name} holds {data.features[name]}; messages must be lists of "
            "{role, content}."
        )
    refuse_nulls(data, name, source)
