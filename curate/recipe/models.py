"""The model section of a recipe: built in, of the user's own, or pretrained."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from curate.recipe.section import Count, Section

Activation = Literal["gelu", "relu", "silu", "tanh"]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Mlp(Section):
    """The built-in perceptron."""

    kind: Literal["mlp"] = "mlp"
    hidden: list[Count] = [64]
    activation: Activation = "gelu"
    dropout: Dropout = 0.0


class Cnn(Section):
    """The built-in convnet."""

    kind: Literal["cnn"] = "cnn"
    channels: Annotated[list[Count], Field(min_length=1)] = [16, 32]
    activation: Activation = "gelu"
    dropout: Dropout = 0.0


class Factory(Section):
    """A model of the user's own: `package.module:function`, called with `arguments`."""

    factory: str
    arguments: dict[str, Any] = {}


class Lora(Section):
    """Low-rank adapters: they are trained, and what they adapt is frozen.

    alpha / rank is what an adapter's output is multiplied by. target_modules: names of the
    layers to adapt; those that peft knows for the architecture if None.
    """

    rank: Count = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None


class Pretrained(Section):
    """A model of transformers' and its tokenizer: directories, or names on the Hub.

    tokenizer: where it is if not with the model. from_scratch: only the architecture is
    taken, and initialised from training.seed. lora: new adapters. adapter: trained ones, of
    peft's, a directory or a name on the Hub.
    """

    pretrained: Annotated[str, Field(min_length=1)]
    tokenizer: Annotated[str, Field(min_length=1)] | None = None
    from_scratch: bool = False
    lora: Lora | None = None
    adapter: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _adapter_of_its_own(self) -> Self:
        if self.adapter is not None and (self.lora is not None or self.from_scratch):
            other = "lora" if self.lora is not None else "from_scratch"
            raise ValueError(f"adapter is for trained weights as they are; remove it or {other}")
        return self


OPEN = {"factory": Factory, "pretrained": Pretrained}
"""Sections without a `kind`, by the key that tells them."""


def _kind_of_model(value: Any) -> str | None:
    if isinstance(value, Section):
        opened = next((f"~{key}" for key, kind in OPEN.items() if type(value) is kind), None)
        return opened or f"~{getattr(value, 'kind', '')}"
    if isinstance(value, dict):
        opened = next((f"~{key}" for key in OPEN if key in value), None)
        return opened or f"~{value.get('kind', 'mlp')}"
    return None


Model = Annotated[
    Annotated[Mlp, Tag("~mlp")]
    | Annotated[Cnn, Tag("~cnn")]
    | Annotated[Factory, Tag("~factory")]
    | Annotated[Pretrained, Tag("~pretrained")],
    Discriminator(
        _kind_of_model,
        custom_error_type="model_kind",
        custom_error_message="must have `kind: mlp`, `kind: cnn`, "
        "`factory: package.module:name` or `pretrained: PATH`",
    ),
]
