"""Pretrained networks of images with batch normalization, and transformers of patches."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

import curate
from curate.errors import ModelError
from curate.pipeline.verify import RemovalPlan

MODELS = '''
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers import ViTConfig, ViTForImageClassification


class Logits(nn.Module):
    """A model of transformers for images, as a function of pixels alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixel_values=pixels).logits


def resnet():
    """Two stages, with the statistics of some images, as pretrained ones have them."""
    sizes = dict(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    config = ResNetConfig(num_channels=1, num_labels=10, **sizes)
    model = Logits(ResNetForImageClassification(config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.rand(32, 1, 8, 8, generator=generator))
    return model


def vit():
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    shape = dict(image_size=8, patch_size=4, num_channels=1, num_labels=10)
    return Logits(ViTForImageClassification(ViTConfig(**sizes, **shape)))
'''


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    """Names for torchvision's compiled operators where these do not load, as for want of CUDA.

    Its networks need none of them, but its import, and that of transformers beside it, their names.
    """
    found, library = importlib.util.find_spec("torchvision"), None
    if found is not None and found.origin is not None:
        try:
            torch.ops.load_library(Path(found.origin).with_name("_C.so"))
        except OSError:
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield
    del library


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from sklearn.datasets import load_digits

    monkeypatch.chdir(tmp_path)
    Path("vision_models.py").write_text(MODELS)
    digits = load_digits()
    images = (digits.images[:120, None] / 16).astype(np.float32)
    table = {"image": images.tolist(), "label": digits.target[:120].tolist()}
    Dataset.from_dict(table).to_parquet("digits.parquet")
    return tmp_path


def recipe(model: str, **options: Any) -> Any:
    return curate.check_recipe(
        {
            "data": {
                "train": "digits.parquet",
                "validation": {"fraction": 0.3},
                "columns": {"features": ["image"], "label": "label"},
            },
            "model": {"factory": f"vision_models:{model}", **options},
            "training": {"epochs": 1, "batch_size": 14, "optimizer": {"lr": 3e-3}},
            "selection": {"horizon": 3, "jump": "exact", "keep": {"fraction": 0.8}},
        }
    )


@pytest.mark.parametrize("model", ["resnet", "vit"])
def test_influences_are_those_of_leaving_rows_out(here: Path, model: str) -> None:
    plan = RemovalPlan(examples=16, mistaken=False)
    options = {"freeze_norms": True} if model == "resnet" else {}
    _, summary = curate.verify(recipe(model, **options), here / "out", plan, device="cpu")
    assert summary["agreement"]["spearman"]["value"] > 0.9


def test_statistics_that_are_not_frozen_are_refused_with_the_key(here: Path) -> None:
    with pytest.raises(ModelError, match=r"mixes the examples.*model\.freeze_norms in a recipe"):
        curate.run_select(recipe("resnet"), here / "out", device="cpu")


def test_networks_of_torchvision_from_python(here: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    images = [(torch.rand(3, 32, 32), k % 10) for k in range(24)]
    found = curate.select(
        images[:16],
        validation=images[16:],
        model=curate.freeze_norms(
            nn.Sequential(torchvision.models.shufflenet_v2_x0_5(num_classes=10))
        ),
        training={"batch_size": 8},
        selection={"horizon": 1, "judge": False, "keep": {"fraction": 0.5}},
    )
    assert len(found.dataset) == 8


@pytest.mark.parametrize(
    "model",
    [
        {"model_name": "test_resnet", "in_chans": 1},
        {"model_name": "test_vit", "in_chans": 1, "img_size": 8, "patch_size": 4},
    ],
    ids=lambda model: model["model_name"],
)
def test_networks_of_timm_from_a_recipe(here: Path, model: dict[str, Any]) -> None:
    pytest.importorskip("timm")
    changes = {
        "factory": "timm:create_model",
        "arguments": {"num_classes": 10, **model},
        "freeze_norms": True,
    }
    given = recipe("resnet").model_dump(exclude_unset=True)
    given["training"]["optimizer"]["lr"] = 1e-3  # for networks with kinks
    timm = curate.check_recipe({**given, "model": changes})
    plan = RemovalPlan(examples=16, mistaken=False)
    _, summary = curate.verify(timm, here / "out", plan, device="cpu")
    assert summary["agreement"]["spearman"]["value"] > 0.9
