"""From text columns to token ids, and to the tokens that the loss is about."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset

from curate.datasets.columns import holds_strings, refuse_nulls, require_columns
from curate.datasets.sources import fingerprint_of
from curate.datasets.tokens import Encoded
from curate.errors import DataError

TOGETHER = 1000
"""Rows that are read and tokenized at a time."""
LONG = 16
"""Characters for each token that is wanted, more than which are not tokenized at once."""
SHOWN = 40
KNOWN = "transformers."
LITTLE = 2**20
"""Bytes of texts that are tokenized in no time."""
MARKS_ASSISTANT = re.compile(r"\{%-?\s*generation\b")


def encode_texts(
    data: Dataset, name: str, source: str, tokenizer: Any, most: int | None = None
) -> Iterator[Encoded]:
    """A column of texts to predict token by token: BOS and EOS around each, if there are any.

    Args:
        most: tokens after which a text may be cut, so that more of them are not worth their time.

    Raises:
        DataError: the column does not hold strings, or one is null.
    """
    frame = _framing(tokenizer)
    for (ids,) in _plain(data, [name], source, tokenizer, most):
        yield frame([], ids)


def encode_completions(
    data: Dataset,
    prompt: str,
    completion: str,
    source: str,
    tokenizer: Any,
    most: int | None = None,
) -> Iterator[Encoded]:
    """Prompts and their completions; only the completion, and EOS, is learned.

    The two are tokenized apart, as they are where a model is asked to complete a prompt.
    """
    frame = _framing(tokenizer)
    for before, learned in _plain(data, [prompt, completion], source, tokenizer, most):
        yield frame(before, learned)


def encode_messages(
    data: Dataset, name: str, source: str, tokenizer: Any, most: int | None = None
) -> Iterator[Encoded]:
    """Conversations in the tokenizer's chat template, which says what ends a turn.

    A key that is null, at whatever depth, is not there for the template: columns of a file give
    every turn the keys of all.

    Only the assistant's tokens are learned where the template marks them
    (`{% generation %}`), all tokens otherwise.

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
    for row, messages in enumerate(data.select_columns([name]).with_format(None)):
        if not _is_conversation(messages[name]):
            raise DataError(
                f"{source}: column {name} is {str(messages[name])[:SHOWN]} at row {row}; messages "
                "must be lists of {role, content}."
            )
        turns = _present(messages[name])
        try:
            ids, learned = _templated(turns, tokenizer, marked, most)
        except Exception as error:  # a template raises whatever it likes
            raise DataError(
                f"{source}: column {name}: the chat template cannot take row {row}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}."
            ) from error
        yield Encoded(ids, learned)


def _present(value: Any) -> Any:
    """A value without the keys that are null in it."""
    if isinstance(value, dict):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value


def _is_conversation(turns: Any) -> bool:
    """Whether it is turns with roles, of which at least one, if there are any, says something."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return False
    return all(turn.get("role") is not None for turn in turns) and (
        not turns or any("content" in turn for turn in turns)
    )


def _templated(
    turns: list[Any], tokenizer: Any, marked: bool, most: int | None
) -> tuple[list[int], list[bool]]:
    """The tokens of a conversation, and which of them are learned."""
    if most is not None and not marked and len(str(turns)) > LONG * most:
        text = _shortened(tokenizer.apply_chat_template(turns, tokenize=False), tokenizer, most)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids, [True] * len(ids)
    encoded = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=marked
    )
    ids = encoded["input_ids"]
    return ids, [m == 1 for m in encoded["assistant_masks"]] if marked else [True] * len(ids)


def encode_whole(
    data: Dataset, name: str, source: str, tokenizer: Any, max_length: int
) -> Iterator[Encoded]:
    """A column of texts to classify, with the tokenizer's own special tokens, cut as it cuts."""
    for (texts,) in _strings(data, [name], source):
        texts = [_shortened(text, tokenizer, max_length) for text in texts]
        for text, ids in zip(texts, _ids(texts, tokenizer, special=True), strict=True):
            cut = len(ids) > max_length
            if cut:
                ids = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
            yield Encoded(ids, [True] * len(ids), cut)


def truncate(texts: Iterator[Encoded], max_length: int) -> Iterator[Encoded]:
    """The texts, each cut after `max_length` tokens."""
    for ids, learned, cut in texts:
        yield Encoded(ids[:max_length], learned[:max_length], cut or len(ids) > max_length)


def _plain(
    data: Dataset, names: list[str], source: str, tokenizer: Any, most: int | None
) -> Iterator[tuple[list[int], ...]]:
    """The ids of some columns' texts, row by row, without special tokens."""
    for columns in _strings(data, names, source):
        cut = ([_shortened(text, tokenizer, most) for text in texts] for texts in columns)
        yield from zip(*(_ids(texts, tokenizer, special=False) for texts in cut), strict=True)


def _ids(texts: list[str], tokenizer: Any, *, special: bool) -> list[list[int]]:
    """The ids of some texts, with the tokenizer's special tokens if it has any, or without.

    They are those of `tokenizer(texts)`, which looks up where in the text each token stands, too.
    """
    backend = tokenizer.backend_tokenizer if _is_known(tokenizer) else None
    encode = getattr(backend, "encode_batch_fast", None)
    if encode is None:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=special)["input_ids"]
        return ids
    tokenizer("")  # says to its backend how it tokenizes
    return [text.ids for text in encode(texts, add_special_tokens=special)]


def _is_known(tokenizer: Any) -> bool:
    """Whether a tokenizer is none but what its backend, which is data, says."""
    return getattr(tokenizer, "is_fast", False) and type(tokenizer).__module__.startswith(KNOWN)


def cache_file(data: Dataset, names: list[str], tokenizer: Any, settings: list[Any]) -> Path | None:
    """The file that keeps the tokens of some columns, see `kept`: by their content, the tokenizer,
    the versions of what tokenizes, and `settings`.

    None where there is nothing to win (`LITTLE`), or no telling what a tokenizer does.
    """
    texts = data.select_columns(names)
    if texts.data.nbytes < LITTLE or not _is_known(tokenizer):
        return None
    template, backend = str(tokenizer.chat_template), tokenizer.backend_tokenizer
    if "strftime_now" in template:
        return None
    backend.no_truncation()
    backend.no_padding()
    own = [type(tokenizer).__qualname__, str(tokenizer.special_tokens_map), template]
    own += [backend.to_str(), tokenizer.truncation_side, tokenizer.model_max_length]
    versions = [version(name) for name in ("curate", "transformers", "tokenizers")]
    known = [fingerprint_of(texts), names, own, versions, settings]
    name = hashlib.blake2b(json.dumps(known).encode(), digest_size=16).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / "curate-tokens" / f"{name}.safetensors"


def _shortened(text: str, tokenizer: Any, most: int | None) -> str:
    """As much of a text as has the same first `most` tokens, without a look at all of a long one.

    Twice as many tokens as that, so that the cut, which may change those beside it, is far away.
    """
    end = len(text) if most is None else LONG * most
    while end < len(text):
        if len(tokenizer(text[:end], add_special_tokens=False)["input_ids"]) >= 2 * (most or 0):
            return text[:end]
        end *= 2
    return text


def _framing(tokenizer: Any) -> Callable[[list[int], list[int]], Encoded]:
    """Makes a text of tokens before what is learned, and of those that are.

    BOS comes first where the tokenizer starts texts with it, and EOS last if there is one;
    neither is added twice, nor to a text with nothing to learn.
    """
    bos = [tokenizer.bos_token_id]
    if tokenizer("")["input_ids"][:1] != bos:
        bos = []
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def frame(before: list[int], learned: list[int]) -> Encoded:
        if not learned:
            return Encoded(before, [False] * len(before))
        head = before if (before + learned)[:1] == bos else bos + before
        tail = learned if learned[-1:] == eos else learned + eos
        return Encoded(head + tail, [False] * len(head) + [True] * len(tail))

    return frame


def _strings(data: Dataset, names: list[str], source: str) -> Iterator[list[list[str]]]:
    """The texts of some columns, a batch of rows at a time."""
    require_columns(data, names, source)
    for name in names:
        feature = data.features[name]
        if not holds_strings(feature):
            raise DataError(f"{source}: column {name} holds {feature}; text must be strings.")
        refuse_nulls(data, name, source)
    plain = data.select_columns(names).with_format(None)
    for start in range(0, len(plain), TOGETHER):
        batch = plain[start : start + TOGETHER]
        yield [batch[name] for name in names]


def _require_messages(data: Dataset, name: str, source: str) -> None:
    require_columns(data, [name], source)
    kind = data.features.arrow_schema.field(name).type
    if "Json" in str(data.features[name]):  # any turn may have keys of its own
        refuse_nulls(data, name, source)
        return
    lists = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)
    turn = kind.value_type if isinstance(kind, lists) else pa.null()
    if not pa.types.is_struct(turn) or not {"role", "content"} <= {field.name for field in turn}:
        raise DataError(
            f"{source}: column {name} holds {data.features[name]}; messages must be lists of "
            "{role, content}."
        )
    refuse_nulls(data, name, source)
