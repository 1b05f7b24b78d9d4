"""The data section of a recipe: where rows come from and which columns are what."""

from typing import Annotated, Any

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


class Columns(Section):
    """Which columns are what. Features are names or shell patterns."""

    features: Annotated[list[str], Field(min_length=1)]
    label: str | None = "label"
    classes: Count | None = None
    image_shape: Annotated[list[Count], Field(min_length=2, max_length=3)] | None = None

    @field_validator("features", mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class LabelNoise(Section):
    """Wrong labels on purpose, among the candidates only."""

    fraction: Fraction
    seed: Seed = 0


class Data(Section):
    """The candidates, the targets, and what is held out for evaluation."""

    train: Source
    columns: Columns
    validation: Targets | None = None
    test: Held | None = None
    seed: Seed = 0
    standardize: bool = False
    label_noise: LabelNoise | None = None
