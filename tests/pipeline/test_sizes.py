"""Sizes with which a recipe runs in minutes, whatever the number of rows."""

from collections import Counter

import pytest
import torch

from curate.datasets import Column
from curate.models.builtin import cnn, mlp
from curate.pipeline.column_guess import Guess
from curate.pipeline.sizes import ENCODER, SCALES, SMALL_ENCODER, Sized, sized

LABEL = Column("label", "number", distinct=2, high=1)
NUMBERS = Guess("classification", {"features": ["x"]}, [Column("x", "number")], {}, LABEL)
TEXT = Column("text", "text", low=3, long=90)
TEXTS = Guess("sequence_classification", {"text": "text"}, [TEXT], {}, LABEL)
WRITTEN = Guess("causal_lm", {"text": "text"}, [TEXT], {})


def pictures(*sizes: tuple[int, int]) -> Guess:
    column = Column("image", "image", sizes=Counter(sizes))
    return Guess("classification", {"features": ["image"]}, [column], {}, LABEL)


def made(
    found: Guess, rows: int = 2000, *, has_target: bool = False, on_gpu: bool = False
) -> Sized:
    return sized(found, rows, has_target=has_target, on_gpu=on_gpu)


@pytest.mark.parametrize("rows", [20, 300, 2000, 50_000, 1_000_000, 100_000_000])
@pytest.mark.parametrize("found", [NUMBERS, pictures((28, 28)), TEXTS, WRITTEN])
def test_work_does_not_grow_with_rows(found: Guess, rows: int) -> None:
    chosen = made(found, rows)
    training, share = chosen.training, chosen.target["fraction"]
    candidates = rows - round(share * rows)
    scored = chosen.more.get("score", {"sample": candidates})["sample"]
    steps = training["epochs"] * -(-scored // training["batch_size"])
    assert steps <= 1000
    assert training["schedule"]["warmup_steps"] == pytest.approx(steps / 10, abs=1)
    assert 0 < share <= 0.2
    assert 1 <= round(share * rows) <= 1 + 1.05 * max(scale.target for scale in SCALES.values())


def test_a_given_target_leaves_all_rows_to_be_scored() -> None:
    there = {"has_target": True, "on_gpu": True}
    assert made(TEXTS, 4000, **there).more == {}
    assert made(TEXTS, 4500, **there).more == {"score": {"sample": 4000}}


@pytest.mark.parametrize(("free", "more"), [(2**33, {}), (2**34, {"snapshots": "3GiB"})])
def test_states_are_kept_where_memory_is_free(
    free: int, more: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.pipeline.sizes.available", lambda: free)
    assert made(TEXTS).more.get("trajectory", {}) == more
    assert made(NUMBERS).more == {}


def test_the_encoder_suits_the_machine() -> None:
    there, here = made(TEXTS, on_gpu=True), made(TEXTS)
    assert (there.model["pretrained"], here.model["pretrained"]) == (ENCODER, SMALL_ENCODER)
    assert ENCODER in here.notes["model"]
    assert there.training["optimizer"]["lr"] < here.training["optimizer"]["lr"] < 1e-3


def test_texts_are_cut_where_few_are_longer() -> None:
    assert made(TEXTS).data == {"max_length": 32}
    wide = Column("text", "text", low=0, long=90, bytes=3)  # and some are empty
    longer = Guess("sequence_classification", {"text": "text"}, [wide], {}, LABEL)
    assert made(longer).data == {"max_length": 128, "min_length": 1}
    assert made(WRITTEN).data == {"max_length": 32, "min_length": 1}


@pytest.mark.parametrize(
    ("sizes", "size", "channels"),
    [
        ([(28, 28)], None, 2),
        ([(64, 48)], None, 3),
        ([(480, 640)], [64, 64], 3),
        ([(100, 120), (90, 80)], [64, 64], 3),
        ([(40, 50), (32, 32)], [32, 32], 2),
        ([(4, 60)], [32, 32], 2),
    ],
)
def test_pictures_are_brought_to_what_the_convnet_takes(
    sizes: list[tuple[int, int]], size: list[int] | None, channels: int
) -> None:
    chosen = made(pictures(*sizes))
    assert chosen.columns.get("image_size") == size
    assert len(chosen.model["channels"]) == channels
    cnn((3, *(size or sizes[0])), 2, channels=chosen.model["channels"])


@pytest.mark.parametrize("kind", ["numbers", "pictures"])
def test_a_far_label_moves_the_last_layer_alone(kind: str) -> None:
    label = Column("price", "number", mean=5e5, deviation=2e5, distinct=900)
    one = NUMBERS if kind == "numbers" else pictures((28, 28))
    chosen = made(Guess("regression", one.columns, one.used, {}, label))
    ((group,),) = [chosen.training["optimizer"]["groups"]]
    hidden = {key: chosen.model[key] for key in ("hidden", "channels") if key in chosen.model}
    module = mlp((4,), 1, **hidden) if kind == "numbers" else cnn((1, 28, 28), 1, **hidden)
    last = [name for name, _ in module.named_parameters()][-2:]
    assert isinstance(module[-1], torch.nn.Linear)
    assert [f"{group['match'][0][:-2]}.{part}" for part in ("weight", "bias")] == last
    assert group["lr"] == pytest.approx(chosen.training["optimizer"]["lr"] * 5e5, rel=0.5)
    near = Column("price", "number", mean=1, deviation=2, distinct=900)
    plain = made(Guess("regression", one.columns, one.used, {}, near))
    assert "groups" not in plain.training["optimizer"]
