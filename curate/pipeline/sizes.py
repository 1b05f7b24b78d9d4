"""Which model a recipe starts with, and sizes with which it runs in minutes."""

import math
from dataclasses import dataclass, field
from typing import Any

from curate.pipeline.column_guess import Guess
from curate.runtime.allocator import available
from curate.runtime.units import memory_bytes

ENCODER, CAUSAL = "distilbert/distilbert-base-uncased", "HuggingFaceTB/SmolLM2-135M"
SMALL_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
"""A quarter of the work of `ENCODER`, for machines without a GPU."""
SMALL, LARGE = 32, 64
"""Pixels of a side that the small convnet takes."""
LENGTHS = (32, 64, 128, 256, 512)
"""Tokens after which texts are cut; two halvings of the last cost more than what they hold."""
BYTES = 3
"""Of a token, at least, in most texts."""
STATES, SPARE = "3GiB", 4
"""Memory for a window of `SMALL_ENCODER`, where so many times that is free."""
FAR = 10.0
"""Size of numbers to predict that a last layer takes long to get to by itself."""


@dataclass(frozen=True)
class Scale:
    """How much of a kind of data takes minutes: texts on a GPU, all others on a CPU, too.

    target: rows of the target, all of which are gone through every window. scored: rows that are
    trained on. batch: rows of a step. steps: of a training, between the least and the most epochs.
    horizon: steps that are looked ahead. lr: the learning rate.
    """

    target: int
    scored: int
    batch: int
    steps: int
    epochs: tuple[int, int]
    horizon: int
    lr: float


SCALES = {
    "numbers": Scale(1000, 50_000, 32, 500, (2, 10), 8, 3e-3),
    "pictures": Scale(400, 10_000, 32, 400, (2, 8), 8, 1e-3),
    "encoder": Scale(200, 4_000, 16, 200, (1, 3), 8, 5e-5),
    "small encoder": Scale(100, 2_000, 32, 60, (1, 3), 8, 3e-4),
    "causal": Scale(100, 2_000, 8, 200, (1, 3), 8, 2e-4),
}


@dataclass(frozen=True)
class Sized:
    """The parts of a recipe that follow from its columns and rows, and notes on them.

    target: a share of the rows, `data.validation` where none is given. columns, data: what comes to
    these sections. more: other sections.
    """

    model: dict[str, Any]
    training: dict[str, Any]
    selection: dict[str, Any]
    target: dict[str, Any]
    columns: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def sized(found: Guess, rows: int, *, has_target: bool, on_gpu: bool) -> Sized:
    """The sizes for so many rows.

    Args:
        has_target: whether there is a target already. on_gpu: whether this machine has one.
    """
    kind = _kind(found, on_gpu=on_gpu)
    scale = SCALES[kind]
    share = float(f"{min(0.2, scale.target / rows):.2g}")
    candidates = rows if has_target else rows - round(share * rows)
    scored = min(candidates, scale.scored)
    batch = scale.batch * (4 if scored > 100 * scale.batch and kind == "numbers" else 1)
    batch = max(4, min(batch, scored // 8))
    epochs = min(max(round(scale.steps * batch / scored), scale.epochs[0]), scale.epochs[1])
    steps = epochs * math.ceil(scored / batch)
    training: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch,
        "optimizer": {"kind": "adamw", "lr": scale.lr},
        "schedule": {"kind": "linear", "warmup_steps": max(1, steps // 10)},
    }
    made = Sized(
        model={},
        training=training,
        selection={"horizon": scale.horizon, "keep": "auto"},
        target={"fraction": share},
        notes={
            "training.epochs": f"{steps:,} steps; a selection takes about six such trainings, and "
            "`--plan` says how long",
            "training.schedule": "up over the first tenth, and down to 0 by the end",
            "selection.horizon": "K, the steps that are looked ahead; 1 for half of the scoring",
            "selection.keep": "how much is worth keeping is found; {fraction: 0.7} keeps that",
        },
    )
    if scored < candidates:
        made.more["score"] = {"sample": scored}
        made.notes["score"] = (
            f"so many of the {candidates:,} candidates are scored by training on them, the scores "
            "of the others are predicted; more are surer, and slower"
        )
    {
        "numbers": _numbers,
        "pictures": _pictures,
        "encoder": _encoder,
        "small encoder": _small_encoder,
        "causal": _causal,
    }[kind](made, found)
    return made


def _kind(found: Guess, *, on_gpu: bool) -> str:
    if found.label is None:
        return "causal"
    if found.objective == "sequence_classification":
        return "encoder" if on_gpu else "small encoder"
    return "pictures" if found.pictures else "numbers"


def _numbers(made: Sized, found: Guess) -> None:
    made.model.update({"kind": "mlp", "hidden": [64]})
    made.data["standardize"] = True
    made.notes["data.standardize"] = "every feature to mean 0 and deviation 1"
    made.notes["model"] = "a small perceptron; a module of your own: {factory: package.module:name}"
    made.notes["training.optimizer"] = "1e-3 if the loss jumps"
    _reach(made, found, last="3.*")


def _pictures(made: Sized, found: Guess) -> None:
    (column,) = found.used
    common = column.sizes.most_common(1)[0][0]
    least = sorted(min(size) for size in column.sizes.elements())[column.sizes.total() // 2]
    side = LARGE if least >= LARGE else SMALL
    if len(column.sizes) > 1 or max(common) > LARGE or min(common) < 8:
        made.columns["image_size"] = [side, side]
    else:
        side = max(common)
    channels = [16, 32, 64] if side > SMALL else [16, 32]
    made.model.update({"kind": "cnn", "channels": channels})
    made.data["standardize"] = True
    made.notes["data.standardize"] = "every pixel to mean 0 and deviation 1"
    made.notes["model"] = (
        "a small convnet; a pretrained network of your own: {factory: package.module:name}, and "
        "image_size as it takes them"
    )
    _reach(made, found, last=f"{3 * len(channels) + 1}.*")


def _encoder(made: Sized, found: Guess) -> None:
    made.model["pretrained"] = ENCODER
    made.notes["model"] = (
        "it could be any encoder of transformers: a name on the Hub or a directory "
        '(`pip install "curate[hf]"`); of texts that are not English, '
        "distilbert/distilbert-base-multilingual-cased"
    )
    made.notes["training.optimizer"] = (
        "the larger the model, the lower: 1e-5 to 5e-5 for 100 million parameters, 1e-4 to 3e-4 "
        "for ten; 1e-3 would ruin it"
    )
    _texts(made, found)


def _small_encoder(made: Sized, found: Guess) -> None:
    _encoder(made, found)
    made.model["pretrained"] = SMALL_ENCODER
    made.notes["model"] = (
        f"for a machine without a GPU; with one, {ENCODER}; " + made.notes["model"]
    )
    if available() >= SPARE * memory_bytes(STATES):
        made.more["trajectory"] = {"snapshots": STATES}
        made.notes["trajectory"] = (
            f"memory for the states of {made.selection['horizon']} steps of that model; with less "
            "(the default is 1GiB), steps are done again"
        )


def _causal(made: Sized, found: Guess) -> None:
    chat = "messages" in found.columns
    made.model.update({"pretrained": CAUSAL + "-Instruct" * chat, "lora": {"rank": 8}})
    made.notes["model"] = (
        'a model of transformers (`pip install "curate[lora]"`): any causal model of the Hub, or a '
        f"directory{', with a chat template' if chat else ''}; for a GPU, `--plan` says how long "
        "it takes without one; without lora all of it is trained"
    )
    made.notes["training.optimizer"] = "of adapters 1e-4 to 5e-4; without lora 1e-5 to 1e-4"
    _texts(made, found)


def _texts(made: Sized, found: Guess) -> None:
    made.training["clip_norm"] = 1.0
    tokens = sum(column.long * column.bytes for column in found.used) / BYTES
    most = next((length for length in LENGTHS if length >= tokens), LENGTHS[-1])
    if "messages" not in found.columns:
        made.data["max_length"] = most
        made.notes["data.max_length"] = (
            "tokens after which a text is cut; longer ones cost more than they are long"
        )
    else:
        made.data["max_length"] = LENGTHS[-1]
    if found.label is None or any(column.low == 0 for column in found.used):
        made.data["min_length"] = 1
        made.notes["data.min_length"] = "texts with nothing to learn are left out, and counted"


def _reach(made: Sized, found: Guess, last: str) -> None:
    """Let the last layer get to the numbers that are to be predicted."""
    if found.objective != "regression" or found.label is None:
        return
    far = max(abs(found.label.mean), found.label.deviation)
    if far > FAR:
        optimizer = made.training["optimizer"]
        optimizer["groups"] = [{"match": [last], "lr": float(f"{optimizer['lr'] * far:.1g}")}]
        made.notes["training.optimizer"] = (
            f"the label's numbers are about {far:,.3g} large, so that the last layer has to move "
            "faster to get there; a column of them divided by that needs no groups"
        )
