"""The recipes that come with the project, end to end, on small data of the Hub's columns and types.

Only the size and the places are changed, with `--set`, as a user would.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import polars as pl
import pytest
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from curate.recipe import Source, load_recipe
from tests import words
from tests.job import curate, sets

FOLDER = Path(__file__).parents[1] / "recipes"
PATHS = sorted(FOLDER.glob("*.yaml"))


def mnist() -> DatasetDict:
    """As `ylecun/mnist`: PNG images of 28 x 28 and ClassLabels. A class is the place of a bar."""
    random, kind = np.random.default_rng(0), datasets.ClassLabel(names=[*"0123456789"])

    def image(label: int) -> dict[str, Any]:
        pixels = random.integers(0, 60, (28, 28), dtype=np.uint8)
        pixels[4:24, 2 * label + 3 : 2 * label + 7] = 250
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    def part(count: int) -> Dataset:
        labels = [i % 10 for i in range(count)]
        return Dataset.from_dict(
            {"image": [image(label) for label in labels], "label": labels},
            features=datasets.Features({"image": datasets.Image(), "label": kind}),
        )

    return DatasetDict({"train": part(240), "test": part(60)})


def wikitext() -> DatasetDict:
    """As `Salesforce/wikitext`: blank lines, headings of several levels, paragraphs."""

    def part(count: int) -> Dataset:
        rows = []
        for i, passage in enumerate(words.passages(count)):
            rows += ["", f" = Number {i} = \n", "", f" {passage} \n"]
        return Dataset.from_dict({"text": rows})

    return DatasetDict({"train": part(60), "validation": part(100), "test": part(20)})


def gsm8k() -> DatasetDict:
    """As `openai/gsm8k`: a question and a worked answer; the first question is too long."""

    def part(count: int) -> Dataset:
        texts = words.texts(count)
        questions = ["why? " * 64, *texts["prompt"][1:]]
        return Dataset.from_dict({"question": questions, "answer": texts["completion"]})

    return DatasetDict({"train": part(60), "test": part(20)})


def pairs() -> Dataset:
    """As `Intel/orca_dpo_pairs`: a question, a better answer, a worse one; all in one split."""
    texts = words.texts(80)
    answers = texts["completion"][:]
    return Dataset.from_dict(
        {
            "system": [""] * 80,
            "question": texts["prompt"],
            "chosen": answers,
            "rejected": [*answers[1:], answers[0]],
        }
    )


def at_home(saved: str, **others: str) -> list[str]:
    """Overrides that point a recipe's sources at a directory, with the splits they have."""
    splits = {"train": "train", "test": "test"} | others
    return [f"data.{part}={{path: {saved}, split: '{split}'}}" for part, split in splits.items()]


SMALL: dict[str, list[str]] = {
    "digits": ["training.epochs=2", "evaluation.seeds=[0]"],
    "mnist_mlp": [
        *at_home("mnist"),
        "data.validation.fraction=0.2",
        "training.batch_size=32",
        "training.schedule.warmup_steps=2",
        "model.hidden=[16]",
        "selection.horizon=4",
        "evaluation.seeds=[0]",
    ],
    "mnist_cnn": [
        *at_home("mnist"),
        "data.validation.fraction=0.2",
        "training.batch_size=32",
        "training.schedule.warmup_steps=2",
        "model.channels=[4]",
        "evaluation.seeds=[0]",
    ],
    "gpt2_wikitext": [
        *at_home("wikitext", validation="validation[:10%]"),
        "model.pretrained=gpt2",
        "model.from_scratch=true",
        "data.max_length=64",
        "training.schedule.warmup_steps=1",
        "training.optimizer.lr=1e-3",
    ],
    "llama_lora": [
        *at_home("gsm8k"),
        "model.pretrained=llama",
        "model.tokenizer=gpt2",
        "model.from_scratch=true",
        "data.validation.fraction=0.2",
        "data.max_length=64",
        "training.epochs=1",
        "training.schedule.warmup_steps=1",
        "selection.horizon=2",
    ],
    "dpo_lora": [
        "data.train=pairs",
        "data.validation.fraction=0.2",
        "data.test.fraction=0.1",
        "model.pretrained=llama",
        "model.tokenizer=gpt2",
        "model.from_scratch=true",
        "data.max_length=64",
        "training.schedule.warmup_steps=1",
        "selection.horizon=2",
    ],
}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for make in (mnist, wikitext, gsm8k, pairs):
        make().save_to_disk(make.__name__)
    words.gpt2(dropout=0.1).config.save_pretrained("gpt2")
    words.llama().config.save_pretrained("llama")
    words.tokenizer().save_pretrained("gpt2")
    return tmp_path


def test_there_is_a_small_size_of_every_recipe() -> None:
    assert {path.stem for path in PATHS} == SMALL.keys()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_recipes_are_valid_as_they_are(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.evaluation is not None
    held = [recipe.data.validation, recipe.data.test]
    sources = [str(recipe.data.train), *(str(part) for part in held if isinstance(part, Source))]
    assert len(set(sources)) == len(sources)  # what chooses and what judges is not what is chosen


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_recipes_run_end_to_end(path: Path, there: Path) -> None:
    overrides = SMALL[path.stem]
    assert curate(str(path), "--out", "out", *sets(*overrides)) == 0
    made = json.loads(Path("out/provenance.json").read_text())
    assert {row["trained_on"] for row in made["evaluation"]} >= {"look_ahead", "everything"}
    scores = pl.read_parquet("out/scores.parquet").sort("row")
    assert scores["influence"].is_finite().all()
    assert scores["score"].is_finite().all()
    assert scores["influence"].n_unique() > scores.height // 2
    keep = load_recipe(path, overrides).selection.keep
    fraction = made["worth"]["share"] if keep.auto else keep.fraction
    assert scores["kept"].sum() == round(fraction * scores.height)
    opens_everywhere(there / "out")
    CANDIDATES[path.stem](scores, made)


def opens_everywhere(out: Path) -> None:
    """The same rows and columns in `datasets`, both ways, and in polars."""
    kept, again = load_from_disk(str(out))["train"], load_dataset(str(out), split="train")
    table = pl.concat([pl.read_ipc_stream(shard) for shard in sorted(out.glob("train/*.arrow"))])
    assert table.columns == kept.column_names == again.column_names
    assert table.height == len(kept) == len(again) > 0
    assert kept.features == again.features
    assert kept[-1] == again[-1]


def everything_but_validation_and_test(scores: pl.DataFrame, made: dict[str, Any]) -> None:
    (found,) = made["sources"].values()
    assert scores.height == found["rows"] - round(0.15 * 1797) - round(0.25 * 1797)


def images(scores: pl.DataFrame, made: dict[str, Any]) -> None:
    """Both splits are on record; a fifth of the candidates is wrong; that is seen."""
    counts = {name: found["rows"] for name, found in made["sources"].items()}
    assert counts == {"mnist train": 240, "mnist test": 60}
    assert scores.height == 240 - 48
    assert made["noise"]["planted"] == round(0.2 * scores.height)
    assert made["noise"]["auroc"] > 0.7
    kept, source = load_from_disk("out")["train"], load_from_disk("mnist")["train"]
    assert kept.features["image"] == datasets.Image()
    assert kept.features["label"] == source.features["label"]
    rows = scores.filter("kept")["row"].to_list()
    assert kept["label_clean"][:] == source.select(rows)["label"][:]
    assert raw(kept, "image") == raw(source.select(rows), "image")


def paragraphs(scores: pl.DataFrame, made: dict[str, Any]) -> None:
    """No blank line and no heading is a candidate, or a target; all other rows are."""
    saved, tokenizer = load_from_disk("wikitext"), words.tokenizer()
    ids = tokenizer(saved["train"]["text"][:])["input_ids"]
    long = [row for row, text in enumerate(ids) if len(text[:64]) >= 24]
    assert scores["row"].to_list() == long
    assert all(row % 4 == 3 for row in long)
    assert 20 < len(long) < 60  # so that some paragraphs are too short as well
    assert made["left_out"]["wikitext train"] == 240 - len(long)
    assert made["left_out"]["wikitext validation[:10%]"] >= 30
    kept = load_from_disk("out")["train"]
    assert kept["text"][:] == saved["train"].select(scores.filter("kept")["row"])["text"][:]


def questions(scores: pl.DataFrame, made: dict[str, Any]) -> None:
    """Those whose answer is cut away have nothing to learn, and are left out."""
    tokenizer, saved = words.tokenizer(), load_from_disk("gsm8k")["train"]
    lost = sum(len(ids) >= 64 for ids in tokenizer(saved["question"][:])["input_ids"])
    assert made["left_out"] == {"gsm8k train": lost, "gsm8k test": 1}
    assert 0 < lost < 10
    assert scores.height == 60 - lost - round(0.2 * (60 - lost))
    kept = load_from_disk("out")["train"]
    assert kept.column_names == ["question", "answer"]
    assert kept["answer"][:] == saved.select(scores.filter("kept")["row"])["answer"][:]


def preferences(scores: pl.DataFrame, made: dict[str, Any]) -> None:
    """Those with an answer that is cut away are left out; what was kept is whole."""
    left = 80 - made["left_out"]["pairs"]
    assert 70 < left < 80
    assert scores.height == left - round(0.2 * left) - round(0.1 * left)
    kept = load_from_disk("out")["train"]
    assert kept.column_names == ["system", "question", "chosen", "rejected"]
    saved = load_from_disk("pairs").select(scores.filter("kept")["row"])
    assert kept["rejected"][:] == saved["rejected"][:]


CANDIDATES: dict[str, Callable[[pl.DataFrame, dict[str, Any]], None]] = {
    "digits": everything_but_validation_and_test,
    "mnist_mlp": images,
    "mnist_cnn": images,
    "gpt2_wikitext": paragraphs,
    "llama_lora": questions,
    "dpo_lora": preferences,
}


def raw(data: Dataset, name: str) -> list[bytes]:
    """The encoded images of a column."""
    return [cell["bytes"] for cell in data.cast_column(name, datasets.Image(decode=False))[name]]
