"""The league's settings: data with something wrong in it, or nothing, and a recipe to train on it.

Every setting is a function of a folder of data and a split's number. It gives three tables (train,
validation, test; `broken` in train says which rows an oracle would leave out) and a recipe
without the files' names and without a selection: the product's defaults are what is tried.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

Array = np.ndarray[Any, Any]


class Setting(NamedTuple):
    """What one split of a setting is.

    model: writes what the recipe's `model.pretrained` is to name, for a language model.
    """

    tables: dict[str, pl.DataFrame]
    recipe: dict[str, Any]
    model: Callable[[Path], None] | None = None

    def written(self, folder: Path) -> dict[str, Any]:
        """The recipe, with the names of what is written to a folder: the tables, and the model."""
        for part, table in self.tables.items():
            table.write_parquet(folder / f"{part}.parquet")
        data = {part: str(folder / f"{part}.parquet") for part in self.tables}
        recipe = self.recipe | {"data": self.recipe["data"] | data}
        if self.model is not None:
            self.model(folder / "model")
            recipe["model"] = self.recipe["model"] | {"pretrained": str(folder / "model")}
        return recipe


def digits(noise: float, data: Path, split: int) -> Setting:
    """Handwritten digits of scikit-learn, 8 x 8, a share of labels wrong at random."""
    del data
    from sklearn.datasets import load_digits

    found = load_digits()
    return _labeled(
        found.data / 16,
        found.target,
        (1078, 270, 449),
        noise,
        split,
        hidden=[64],
        batch_size=64,
        epochs=8,
        lr=3e-3,
        standardize=True,
    )


def mnist(
    noise: float, data: Path, split: int, *, asymmetric: bool = False, rows: int = 2000
) -> Setting:
    """MNIST digits, two thousand or more; asymmetric: a wrong label is always the next class."""
    features, labels = _mnist(data, rows)
    return _labeled(
        features,
        labels,
        (rows, 300, 3000),
        noise,
        split,
        asymmetric=asymmetric,
        hidden=[128],
        batch_size=64,
        epochs=6,
        lr=1e-3,
    )


def domains(data: Path, split: int, *, rows: int = 2000) -> Setting:
    """MNIST again, no label wrong; half of the candidates lie on their side, no target does."""
    setting = mnist(0.0, data, split, rows=rows)
    train = setting.tables["train"]
    turned = np.random.default_rng([split, 9]).random(len(train)) < 0.5
    x = np.array(train["x"].to_list()).reshape(-1, 28, 28)
    x[turned] = np.rot90(x[turned], axes=(1, 2))
    train = train.with_columns(
        x=pl.Series(x.reshape(len(x), -1).tolist(), dtype=pl.List(pl.Float32)), broken=turned
    )
    return Setting(setting.tables | {"train": train}, setting.recipe)


def texts(name: str, label: str, noise: float, data: Path, split: int) -> Setting:
    """Short texts as 200 numbers each (tf-idf of words and pairs, by singular values)."""
    features, labels = _texts(data, name, label)
    return _labeled(
        features,
        labels,
        (3000, 450, 2000),
        noise,
        split,
        hidden=[64],
        batch_size=128,
        epochs=12,
        lr=1e-3,
        standardize=True,
    )


def encoder(name: str, label: str, noise: float, data: Path, split: int) -> Setting:
    """Short texts and a small BERT, both from scratch. The numbers of `texts` are for others."""
    features, labels = _texts(data, name, label)
    found = _labeled(
        features,
        labels,
        (1500, 300, 1000),
        noise,
        split,
        hidden=[],
        batch_size=32,
        epochs=5,
        lr=1e-3,
        texts=pl.read_parquet(data / f"{name}.parquet")["text"],
    )
    recipe = found.recipe | {
        "data": {"columns": {"text": "text", "label": "label"}, "max_length": 48},
        "model": {"from_scratch": True},
        "objective": "sequence_classification",
    }
    recipe["training"]["schedule"] = {"kind": "cosine", "warmup_steps": 20}
    words = found.tables["train"]["text"].to_list()
    classes = int(labels.max()) + 1
    return Setting(found.tables, recipe, partial(_bert, words, classes))


def polluted(share: float, data: Path, split: int) -> Setting:
    """Paragraphs of WikiText-2 and a small GPT, the words of a share of them shuffled."""
    lines = pl.read_parquet(data / "wikitext2_valid_test.parquet")["text"]
    paragraphs = [words for text in lines if len(words := text.split()) >= 30]
    table = pl.DataFrame({"text": [" ".join(words[:45]) for words in paragraphs]})
    tables = _shuffled(table, "text", share, split)
    recipe = {
        "data": {"columns": {"text": "text"}, "max_length": 64},
        "model": {"from_scratch": True},
        **_language_model(epochs=5, lr=2e-3),
    }
    return Setting(tables, recipe, partial(_gpt, tables["train"]["text"].to_list()))


def adapters(share: float, data: Path, split: int) -> Setting:
    """Questions and answers of GSM8K, the words of a share of the answers shuffled, and LoRA.

    The small GPT that is adapted has learnt on other rows, all right, which no split has.
    """
    table = pl.read_parquet(data / "gsm8k.parquet").select("question", "answer")[LEARNT:]
    table = table.filter(pl.col("question").str.len_chars() < 300)  # so that answers are not cut
    recipe = {
        "data": {"columns": {"prompt": "question", "completion": "answer"}, "max_length": 256},
        "model": {"lora": {"rank": 8, "alpha": 16, "target_modules": ["c_attn", "c_fc"]}},
        **_language_model(epochs=3, lr=5e-3),
    }
    return Setting(_shuffled(table, "answer", share, split), recipe, partial(_learnt, data))


LEARNT = 3000
"""Rows of GSM8K that the model for adapters has learnt from."""


SETTINGS: dict[str, Callable[[Path, int], Setting]] = {
    "digits, 20 % wrong": partial(digits, 0.2),
    "digits, 40 % wrong": partial(digits, 0.4),
    "digits, none wrong": partial(digits, 0.0),
    "MNIST, 20 % wrong": partial(mnist, 0.2),
    "MNIST, 20 % asymmetric": partial(mnist, 0.2, asymmetric=True),
    "MNIST, half turned": domains,
    "TREC, 20 % wrong": partial(texts, "trec", "coarse", 0.2),
    "TREC, none wrong": partial(texts, "trec", "coarse", 0.0),
    "Subj, 20 % wrong": partial(texts, "subj", "label", 0.2),
    "Subj, none wrong": partial(texts, "subj", "label", 0.0),
    "TREC, BERT, 20 % wrong": partial(encoder, "trec", "coarse", 0.2),
    "Subj, BERT, 20 % wrong": partial(encoder, "subj", "label", 0.2),
    "WikiText, GPT, 30 % shuffled": partial(polluted, 0.3),
    "WikiText, GPT, none shuffled": partial(polluted, 0.0),
    "GSM8K, LoRA, 30 % shuffled": partial(adapters, 0.3),
}
TENFOLD: dict[str, Callable[[Path, int], Setting]] = {
    "MNIST x 10, 20 % wrong": partial(mnist, 0.2, rows=20000),
    "MNIST x 10, 20 % asymmetric": partial(mnist, 0.2, asymmetric=True, rows=20000),
    "MNIST x 10, half turned": partial(domains, rows=20000),
}
"""Settings at ten times the rows, the targets and the test sets as they are."""


def _labeled(
    features: Array,
    labels: Array,
    sizes: tuple[int, int, int],
    noise: float,
    split: int,
    *,
    hidden: list[int],
    batch_size: int,
    epochs: int,
    lr: float,
    standardize: bool = False,
    asymmetric: bool = False,
    texts: pl.Series | None = None,
) -> Setting:
    random = np.random.default_rng(split)
    order, classes = random.permutation(len(labels)), int(labels.max()) + 1
    wrong = random.random(sizes[0]) < noise
    hops = np.ones(sizes[0], dtype=int) if asymmetric else random.integers(1, classes, sizes[0])
    tables, ends = {}, np.cumsum((0, *sizes))
    for k, part in enumerate(("train", "validation", "test")):
        rows = order[ends[k] : ends[k + 1]]
        own = labels[rows]
        columns: dict[str, Any] = {
            "x": pl.Series(features[rows].tolist(), dtype=pl.List(pl.Float32)),
            "label": np.where(wrong, (own + hops) % classes, own) if part == "train" else own,
        }
        if texts is not None:
            columns["text"] = texts[rows.tolist()]
        tables[part] = pl.DataFrame(columns | ({"broken": wrong} if part == "train" else {}))
    recipe = {
        "data": {
            "columns": {"features": ["x"], "label": "label", "classes": classes},
            "standardize": standardize,
        },
        "model": {"kind": "mlp", "hidden": hidden, "activation": "gelu"},
        "training": {
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": {"kind": "adamw", "lr": lr},
        },
    }
    return Setting(tables, recipe)


def _shuffled(
    table: pl.DataFrame, column: str, share: float, split: int
) -> dict[str, pl.DataFrame]:
    """Some rows for each part, the words of a share of the candidates' shuffled in a column."""
    random = np.random.default_rng(split)
    order, tables, first = random.permutation(len(table)), {}, 0
    for part, count in (("train", 800), ("validation", 200), ("test", 400)):
        own = table[order[first : first + count].tolist()]
        broken = (random.random(count) < share) & (part == "train")
        texts = [
            " ".join(random.permutation(text.split())) if bad else text
            for text, bad in zip(own[column], broken, strict=True)
        ]
        columns = {column: pl.Series(texts)} | ({"broken": broken} if part == "train" else {})
        tables[part] = own.with_columns(**columns)
        first += count
    return tables


def _language_model(*, epochs: int, lr: float) -> dict[str, Any]:
    """How a small language model is trained."""
    return {
        "objective": "causal_lm",
        "training": {
            "epochs": epochs,
            "batch_size": 16,
            "clip_norm": 1.0,
            "optimizer": {"kind": "adamw", "lr": lr},
            "schedule": {"kind": "cosine", "warmup_steps": 10},
        },
    }


@cache
def _mnist(data: Path, rows: int) -> tuple[Array, Array]:
    """Images and labels that so many candidates, and a target and a test set, are drawn from."""
    table = pl.read_parquet(data / "mnist_train.parquet").head(max(20000, 3 * rows))
    pixels = np.stack([np.frombuffer(image, dtype=np.uint8) for image in table["image"]])
    return ((pixels / 255 - 0.13) / 0.31).astype(np.float32), table["label"].to_numpy().astype(int)


@cache
def _texts(data: Path, name: str, label: str) -> tuple[Array, Array]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    table = pl.read_parquet(data / f"{name}.parquet")
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2))
    found = TruncatedSVD(200, random_state=0).fit_transform(words.fit_transform(table["text"]))
    return found, np.unique(table[label].to_numpy(), return_inverse=True)[1]


def _bert(texts: list[str], classes: int, out: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    _tokenizer(texts, 2000).save_pretrained(out)
    config = BertConfig(
        vocab_size=2000,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        num_labels=classes,
        pad_token_id=1,
    )
    BertForSequenceClassification(config).save_pretrained(out)


def _learnt(data: Path, out: Path) -> None:
    """A small GPT after two epochs of rows of GSM8K; learnt once in a process."""
    tokenizer, model = _learn(data)
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)


@cache
def _learn(data: Path) -> tuple[Any, Any]:
    import torch
    from transformers import GPT2LMHeadModel

    table = pl.read_parquet(data / "gsm8k.parquet")[:LEARNT]
    texts = [
        f"{question} {answer}" for question, answer in table.select("question", "answer").rows()
    ]
    tokenizer = _tokenizer(texts, 1024)
    tokenizer.pad_token = "<pad>"
    torch.manual_seed(0)
    model = GPT2LMHeadModel(_small_gpt(96, 256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for rows in torch.randperm(2 * len(texts)).remainder(len(texts)).split(16):
        some = [texts[row] for row in rows.tolist()]
        batch = tokenizer(some, padding=True, truncation=True, max_length=256, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return tokenizer, model


def _gpt(texts: list[str], out: Path) -> None:
    from transformers import GPT2LMHeadModel

    _tokenizer(texts, 1024).save_pretrained(out)
    GPT2LMHeadModel(_small_gpt(64, 128)).save_pretrained(out)


def _small_gpt(width: int, positions: int) -> Any:
    """Two layers."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=1024,
        n_positions=positions,
        n_embd=width,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )


def _tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Byte pairs, learnt from these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
