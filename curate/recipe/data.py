"""The data section of a recipe: where rows come from and which columns are what."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from curate.recipe.section import Count, Fraction, Section, Seed


class Source(Section):
    """Where rows come from; a bare string is its path."""

    path: Annotated[str, Field(min_length=1)]
    split: str | None = None
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    def __str__(self) -> str:
        """What messages and records call it: its path, configuration and split."""
        return " ".join(part for part in (self.path, self.name, self.split) if part is not None)


class Split(Section):
    """A random part of the training source, taken out of the candidates."""

    fraction: Fraction


def _kind_of_split(value: Any) -> str:
    if isinstance(value, Split) or (isinstance(value, dict) and "fraction" in value):
        return "~fraction"
    if isinstance(value, Source | str) or (isinstance(value, dict) and "path" in value):
        return "~source"
    return "~named"


Targets = Annotated[
    Annotated[Split, Tag("~fraction")]
    | Annotated[Source, Tag("~source")]
    | Annotated[
        dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Source],
        Field(min_length=1),
        Tag("~named"),
    ],
    Discriminator(_kind_of_split),
]
Held = Annotated[
    Annotated[Split, Tag("~fraction")] | Annotated[Source, Tag("~source")],
    Discriminator(
        lambda value: "~source" if _kind_of_split(value) == "~named" else _kind_of_split(value)
    ),
]


Name = Annotated[str, Field(min_length=1)]


class Columns(Section):
    """Which columns are what: features, or text in one of three forms.

    features: names or shell patterns. text: one text a row. prompt, completion: a text to go on
    from, and how it goes on. messages: a conversation, a list of {role, content}.
    label: not read by objective causal_lm.
    """

    features: Annotated[list[str], Field(min_length=1)] | None = None
    text: Name | None = None
    prompt: Name | None = None
    completion: Name | None = None
    messages: Name | None = None
    label: str | None = "label"
    classes: Count | None = None
    image_shape: Annotated[list[Count], Field(min_length=2, max_length=3)] | None = None

    @field_validator("features", mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def form(self) -> Literal["features", "text", "prompt", "messages"]:
        """What examples are made of."""
        if self.text is not None:
            return "text"
        if self.prompt is not None:
            return "prompt"
        return "features" if self.messages is None else "messages"

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.prompt is None) != (self.completion is None):
            missing = "prompt" if self.prompt is None else "completion"
            raise ValueError(f"prompt and completion belong together, but there is no {missing}")
        forms = ("features", "text", "prompt", "messages")
        given = [form for form in forms if getattr(self, form) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of features, text, prompt with completion, and messages, but "
                f"got {' and '.join(given) or 'none'}"
            )
        if self.image_shape is not None and self.features is None:
            raise ValueError("image_shape is for features; remove it")
        return self


class LabelNoise(Section):
    """Wrong labels on purpose, among the candidates only."""

    fraction: Fraction
    seed: Seed = 0


class Data(Section):
    """The candidates, the targets, and what is held out for evaluation.

    max_length: tokens that a text is cut after; 1024 if None, or fewer where the model
    takes fewer. min_length: tokens to learn that a text needs at least (for a classifier,
    tokens), once cut; texts with fewer are left out of every part, and counted. If None, a
    text with nothing to learn is refused.
    """

    train: Source
    columns: Columns
    validation: Targets | None = None
    test: Held | None = None
    seed: Seed = 0
    standardize: bool = False
    label_noise: LabelNoise | None = None
    max_length: Annotated[int, Field(ge=2, le=10**9)] | None = None
    min_length: Count | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        on_text = self.columns.form != "features"
        if self.standardize and on_text:
            raise ValueError("standardize is for features; remove it")
        for name in ("max_length", "min_length"):
            if getattr(self, name) is not None and not on_text:
                raise ValueError(f"{name} is for text; remove it")
        return self
