"""From columns of text to tokens, and to those that the loss is about."""

import json
from typing import Any

import datasets
import pytest
from datasets import Dataset

from curate.datasets import (
    Encoded,
    cache_file,
    encode_completions,
    encode_messages,
    encode_texts,
    encode_whole,
    truncate,
)
from curate.datasets import text as module
from curate.errors import DataError
from tests import words

MARKED = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
UNMARKED = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


def learned(text: Encoded) -> list[int]:
    return [i for i, counts in zip(text.ids, text.learned, strict=True) if counts]


def test_texts_end_once_and_are_learned_whole() -> None:
    tokenizer = words.tokenizer()
    data = Dataset.from_dict({"text": ["one two", "one two<|end|>", ""]})
    first, second, empty = encode_texts(data, "text", "here", tokenizer)
    assert tokenizer.decode(first.ids) == "one two<|end|>"
    assert first == second
    assert all(first.learned)
    assert list(empty.ids) == []


def test_only_the_completion_is_learned() -> None:
    tokenizer, data = words.tokenizer(), words.texts(30)
    encoded = list(encode_completions(data, "prompt", "completion", "here", tokenizer))
    for row, text in zip(data, encoded, strict=True):
        assert tokenizer.decode(learned(text)) == row["completion"] + words.EOS
        assert tokenizer.decode(text.ids) == row["prompt"] + row["completion"] + words.EOS
        assert text.learned == sorted(text.learned)  # the prompt comes first


def test_a_tokenizers_own_beginning_comes_first_and_once() -> None:
    from tokenizers import processors

    tokenizer = words.tokenizer(bos_token="<|begin|>")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
    )
    data = Dataset.from_dict({"prompt": ["a", "<|begin|>a", ""], "completion": ["b", "b", "b"]})
    encoded = list(encode_completions(data, "prompt", "completion", "here", tokenizer))
    assert [tokenizer.decode(text.ids) for text in encoded] == [
        "<|begin|>ab<|end|>",
        "<|begin|>ab<|end|>",
        "<|begin|>b<|end|>",
    ]
    assert [tokenizer.decode(learned(text)) for text in encoded] == ["b<|end|>"] * 3


def test_the_assistants_turns_are_learned_where_the_template_marks_them() -> None:
    tokenizer, data = words.tokenizer(), words.texts(5)
    tokenizer.chat_template = MARKED
    for row, text in zip(data, encode_messages(data, "messages", "h", tokenizer), strict=True):
        assert tokenizer.decode(text.ids) == (
            f"[user]{row['prompt']}[assistant]{row['completion']}<|end|>"
        )
        assert tokenizer.decode(learned(text)) == row["completion"] + words.EOS
    tokenizer.chat_template = UNMARKED
    for row, text in zip(data, encode_messages(data, "messages", "h", tokenizer), strict=True):
        assert tokenizer.decode(learned(text)) == (
            f"[user]{row['prompt']}[assistant]{row['completion']}"
        )


def test_keys_that_a_turn_does_not_have_are_not_there_for_the_template() -> None:
    tokenizer = words.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ 'x' if m.name is defined }}.{% endfor %}"
    turns = [{"role": "a", "content": "b", "name": "c"}, {"role": "a", "content": "b"}]
    (text,) = encode_messages(
        Dataset.from_dict({"messages": [turns]}), "messages", "here", tokenizer
    )
    assert tokenizer.decode(text.ids) == "x.."


def test_texts_are_cut_after_so_many_tokens_and_say_so() -> None:
    long, short = truncate(iter([Encoded([1, 2, 3], [True] * 3), Encoded([1, 2], [True] * 2)]), 2)
    assert (long.ids, long.cut) == ([1, 2], True)
    assert (short.ids, short.cut) == ([1, 2], False)


def test_a_classifiers_special_tokens_survive_cutting() -> None:
    from tokenizers import processors

    tokenizer = words.tokenizer(cls_token="<|cls|>", sep_token="<|sep|>")
    tokenizer._tokenizer.post_processor = processors.BertProcessing(
        ("<|sep|>", tokenizer.sep_token_id), ("<|cls|>", tokenizer.cls_token_id)
    )
    data = Dataset.from_dict({"text": ["a b c d e f g h", "a"]})
    long, short = encode_whole(data, "text", "here", tokenizer, max_length=6)
    assert len(long.ids) == 6
    assert (long.ids[0], long.ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (long.cut, short.cut) == (True, False)


def test_conversations_of_one_length_may_be_lists_of_a_fixed_size() -> None:
    tokenizer = words.tokenizer()
    tokenizer.chat_template = UNMARKED
    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 3
    usual = Dataset.from_dict({"messages": turns})
    kind = usual.features["messages"].feature
    features = datasets.Features({"messages": datasets.List(kind, length=2)})
    fixed = Dataset.from_dict({"messages": turns}, features=features)
    first, second = (list(encode_messages(d, "messages", "x", tokenizer)) for d in (usual, fixed))
    assert first == second


BAD_MESSAGES: list[tuple[Any, str | None, str]] = [
    ([[{"role": "user", "content": "a"}]], None, "has no chat template"),
    (["hello"], UNMARKED, "messages must be lists of {role, content}"),
    (
        [[{"role": "user", "content": "a"}], [{"role": None, "content": "a"}]],
        UNMARKED,
        "at row 1; messages must be lists of {role, content}",
    ),
    ([[{"from": "user", "value": "a"}]], UNMARKED, "messages must be lists of {role, content}"),
    ([[{"role": "user", "content": "a"}], None], UNMARKED, "column messages is null at row 1"),
    (
        [[{"role": "user", "content": "a"}]],
        "{{ raise_exception('no system') }}",
        "column messages: the chat template cannot take row 0: TemplateError: no system",
    ),
    ([[]], UNMARKED, "messages must be lists of {role, content}"),
]


@pytest.mark.parametrize(("messages", "template", "message"), BAD_MESSAGES)
def test_messages_that_cannot_be_used(messages: Any, template: str | None, message: str) -> None:
    tokenizer = words.tokenizer()
    tokenizer.chat_template = template
    data = Dataset.from_dict({"messages": messages})
    with pytest.raises(DataError) as error:
        list(encode_messages(data, "messages", "here", tokenizer))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], "here: column text is null at row 1"),
        ([1, 2], "here: column text holds Value('int64'); text must be strings"),
    ],
)
def test_texts_that_cannot_be_used(texts: list[Any], message: str) -> None:
    tokenizer, data = words.tokenizer(), Dataset.from_dict({"text": texts})
    for encoded in (
        encode_texts(data, "text", "here", tokenizer),
        encode_completions(data, "text", "text", "here", tokenizer),
        encode_whole(data, "text", "here", tokenizer, 4),
    ):
        with pytest.raises(DataError) as error:
            list(encoded)
        assert message in str(error.value)


def test_many_rows_are_encoded_as_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, data = words.tokenizer(), words.texts(30)
    at_once = list(encode_completions(data, "prompt", "completion", "here", tokenizer))
    monkeypatch.setattr("curate.datasets.text.TOGETHER", 7)
    assert list(encode_completions(data, "prompt", "completion", "here", tokenizer)) == at_once


class Counting:
    """A tokenizer that says how many characters it has seen."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.seen = tokenizer, 0

    def __call__(self, texts: Any, **how: Any) -> Any:
        self.seen += len(texts) if isinstance(texts, str) else sum(map(len, texts))
        return self.tokenizer(texts, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


@pytest.mark.parametrize("text", ["one two " * 40_000, "x" * 300_000, " " * 300_000 + "one two"])
def test_a_long_text_is_cut_before_it_is_tokenized(text: str) -> None:
    tokenizer = Counting(words.tokenizer())
    tokenizer.tokenizer.chat_template = UNMARKED
    turns = [{"role": "a", "content": text}, {"role": "b", "content": None}]
    data = Dataset.from_dict({"text": [text], "short": ["a b"], "messages": [turns]})
    for encode in (
        lambda **most: encode_texts(data, "text", "h", tokenizer, **most),
        lambda **most: encode_completions(data, "short", "text", "h", tokenizer, **most),
        lambda **most: encode_completions(data, "text", "short", "h", tokenizer, **most),
        lambda **most: encode_messages(data, "messages", "h", tokenizer, **most),
    ):
        whole = [*truncate(encode(), 20)]
        tokenizer.seen = 0
        assert [*truncate(encode(most=20), 20)] == whole
        assert tokenizer.seen < len(text)
    tokenizer.seen = 0
    (classified,) = encode_whole(data, "text", "h", tokenizer, 20)
    assert classified == Encoded(tokenizer.tokenizer(text)["input_ids"][:20], [True] * 20, True)
    assert tokenizer.seen < len(text)


def test_keys_that_are_null_are_no_keys_at_any_depth() -> None:
    tokenizer = words.tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content | tojson }}{{ m.call | tojson }}{% endfor %}"
    )
    call = {"f": "g", "with": {"a": 1, "b": None}, "list": [{"c": None}, {"c": 2}]}
    turn = {"role": "a", "content": [{"text": "x", "image": None}], "call": call}
    (text,) = encode_messages(Dataset.from_dict({"m": [[turn]]}), "m", "here", tokenizer)
    assert tokenizer.decode(text.ids) == (
        '[{"text": "x"}]{"f": "g", "with": {"a": 1}, "list": [{}, {"c": 2}]}'
    )


def test_turns_of_any_kind_in_a_column_of_json() -> None:
    tokenizer = words.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    rows = [[{"role": "a", "content": "x"}], [{"role": "a", "content": [{"text": "y"}]}]]
    data = Dataset.from_dict(
        {"m": rows}, features=datasets.Features({"m": datasets.List(datasets.Json())})
    )
    decoded = [tokenizer.decode(text.ids) for text in encode_messages(data, "m", "h", tokenizer)]
    assert [json.loads(text) for text in decoded] == [turns[0] for turns in rows]
    for other in ("hello", ["hello"], [{"role": "a", "text": "x"}], [{"content": "x"}]):
        wrong = Dataset.from_dict(
            {"m": [rows[0], other]}, features=datasets.Features({"m": datasets.Json()})
        )
        with pytest.raises(DataError, match=r"here: column m is .* at row 1; messages must be li"):
            [*encode_messages(wrong, "m", "here", tokenizer)]


def test_ids_are_those_of_the_tokenizer_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, data = words.tokenizer(), words.texts(30)
    tokenizer.backend_tokenizer.enable_padding()
    tokenizer.backend_tokenizer.enable_truncation(3)

    def both() -> list[list[Encoded]]:
        return [
            [*encode_completions(data, "prompt", "completion", "h", tokenizer)],
            [*encode_whole(data, "prompt", "h", tokenizer, 4)],
            [*encode_texts(data, "completion", "h", tokenizer)],
        ]

    fast = both()
    monkeypatch.setattr(module, "KNOWN", "nobody")
    assert both() == fast


def test_the_file_of_tokens_has_a_name_for_all_that_they_depend_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, data = words.tokenizer(), words.texts(5)
    assert cache_file(data, ["prompt"], tokenizer, [1]) is None  # too little
    monkeypatch.setattr(module, "LITTLE", 1)

    def name(*arguments: Any) -> Any:
        return cache_file(*arguments)

    usual = name(data, ["prompt"], tokenizer, [1])
    assert usual.parent.parent == datasets.config.HF_DATASETS_CACHE
    assert name(words.texts(5), ["prompt"], words.tokenizer(), [1]) == usual
    tokenizer("a longer text", truncation=True, max_length=2)
    assert name(data, ["prompt"], tokenizer, [1]) == usual
    others = [
        name(words.texts(6), ["prompt"], tokenizer, [1]),
        name(data, ["completion"], tokenizer, [1]),
        name(data, ["prompt"], tokenizer, [2]),
        name(data, ["prompt"], words.tokenizer(bos_token="<|begin|>"), [1]),
    ]
    tokenizer.chat_template = UNMARKED
    others.append(name(data, ["prompt"], tokenizer, [1]))
    assert len({usual, *others}) == 6
    tokenizer.chat_template = "{{ strftime_now('%Y') }}"
    assert name(data, ["prompt"], tokenizer, [1]) is None  # other tokens tomorrow
    monkeypatch.setattr(module, "KNOWN", "nobody")
    assert name(data, ["prompt"], words.tokenizer(), [1]) is None  # its class may do what it likes
