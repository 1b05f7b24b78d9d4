"""The model section of a recipe: built in, of the user's own, or pretrained."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from curate.recipe.section import Count, Section

Activation = Literal["gelu", "relu", "silu", "tanh"]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Mlp(Section):
    """The built-in perceptron."""

    kind: Literal["mlp"] = "mlp"
    """The built-in multilayer perceptron, the default."""
    hidden: list[Count] = [64]
    """The width of every hidden layer."""
    activation: Activation = "gelu"
    """The function after every hidden layer."""
    dropout: Dropout = 0.0
    """The probability of dropping a hidden unit."""


class Cnn(Section):
    """The built-in convnet."""

    kind: Literal["cnn"] = "cnn"
    """The built-in convolutional network, for features with an `image_shape`."""
    channels: Annotated[list[Count], Field(min_length=1)] = [16, 32]
    """The channels of every convolution; each is followed by pooling."""
    activation: Activation = "gelu"
    """The function after every convolution."""
    dropout: Dropout = 0.0
    """The probability of dropping a unit."""


class Factory(Section):
    """A model of the user's own: `package.module:function`, called with `arguments`."""

    factory: str
    """`package.module:function`, which returns the module."""
    arguments: dict[str, Any] = {}
    """Keyword arguments that the function gets."""
    freeze_norms: bool = False
    """Whether layers of batch normalization go by the statistics that they have, in training, too,
    as pretrained ones are fine-tuned; without it they mix the rows of a batch, and are refused."""


class Lora(Section):
    """Low-rank adapters: they are trained, and what they adapt is frozen."""

    rank: Count = 8
    """The rank of every adapter."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """An adapter's output is multiplied by alpha / rank."""
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None
    """The names of layers to adapt; those that peft knows for the architecture if not given."""


class Pretrained(Section):
    """A model of transformers and its tokenizer: directories, or names on the Hub."""

    pretrained: Annotated[str, Field(min_length=1)]
    """A model of transformers: a directory, or a name on the Hub."""
    tokenizer: Annotated[str, Field(min_length=1)] | None = None
    """Where its tokenizer is, if not with the model."""
    from_scratch: bool = False
    """Whether only the architecture is taken, and initialized from `training.seed`."""
    lora: Lora | None = None
    """New low-rank adapters to train, with the model frozen."""
    trust_remote_code: bool = False
    """Whether code that comes with the model is run; without it such a model is refused."""
    adapter: Annotated[str, Field(min_length=1)] | None = None
    """Trained adapters of peft to train further: a directory, or a name on the Hub."""

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
