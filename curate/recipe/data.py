"""The data section of a recipe: where rows come from and which columns are what."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from curate.recipe.section import Count, Fraction, Section, Seed


class Source(Section):
    """Where rows come from; a bare string is its path."""

    path: Annotated[str, Field(min_length=1)]
    """A file (CSV, JSON, JSON Lines, Parquet or Arrow; text also as `.gz`, `.bz2` or `.zst`) or a
    pattern of files, a folder of pictures with one folder for each class (columns `image` and
    `label`), a directory that `save_to_disk` wrote, `sklearn:digits`, or a name on the Hub."""
    split: str | None = None
    """The split of a dataset that has several."""
    name: str | None = None
    """The configuration of a Hub dataset that has several."""
    outside_files: bool = False
    """Whether rows may name pictures and other files that lie outside the data's own folder, or on
    the network; they are then read, and copied into what a run leaves."""

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
    """The share of the training source, drawn at random by `data.seed`."""


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
    """Which columns are what: features, or text in one of four forms."""

    features: Annotated[list[str], Field(min_length=1)] | None = None
    """Columns that make up an example, numbers or images: names or shell patterns (`pixel_*`)."""
    text: Name | None = None
    """The column with one text per row."""
    prompt: Name | None = None
    """The column with the text that `completion` continues; the loss does not count it."""
    completion: Name | None = None
    """The column with the continuation of `prompt`, which the loss is about."""
    chosen: Name | None = None
    """The column with the continuation of `prompt` that is preferred to `rejected`."""
    rejected: Name | None = None
    """The column with the other continuation of `prompt`."""
    messages: Name | None = None
    """The column with a conversation, a list of {role, content}."""
    label: str | None = "label"
    """The column with the class or the number to predict; `causal_lm` does not read it."""
    classes: Count | None = None
    """The number of classes; counted in the training source if not given."""
    image_shape: Annotated[list[Count], Field(min_length=2, max_length=3)] | None = None
    """What raw pixels are, bytes or numbers, row by row: [height, width], or [height, width,
    channels]."""
    image_size: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    """The [height, width] that pictures are resized to; if not given, all must be of one size. Gray
    ones are made RGB where others are."""

    @field_validator("features", mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def form(self) -> Literal["features", "text", "chosen", "prompt", "messages"]:
        """What examples are made of."""
        if self.text is not None:
            return "text"
        if self.prompt is not None:
            return "prompt" if self.chosen is None else "chosen"
        return "features" if self.messages is None else "messages"

    @property
    def texts(self) -> list[str]:
        """All columns of text."""
        kinds = ("text", "prompt", "completion", "chosen", "rejected", "messages")
        return [getattr(self, kind) for kind in kinds if getattr(self, kind) is not None]

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.chosen is not None or self.rejected is not None:
            pair = ("prompt", "chosen", "rejected")
            lacking = [name for name in pair if getattr(self, name) is None]
            if lacking:
                raise ValueError(
                    f"prompt, chosen and rejected belong together, but there is no {lacking[0]}"
                )
            if self.completion is not None:
                raise ValueError("give completion, or chosen and rejected, but not both")
        elif (self.prompt is None) != (self.completion is None):
            missing = "prompt" if self.prompt is None else "completion"
            raise ValueError(f"prompt and completion belong together, but there is no {missing}")
        forms = ("features", "text", "prompt", "messages")
        used = [form for form in forms if getattr(self, form) is not None]
        if len(used) != 1:
            raise ValueError(
                "give exactly one of features, text, prompt with completion (or chosen and "
                "rejected), and messages, but "
                f"got {' and '.join(used) or 'none'}"
            )
        for name in ("image_shape", "image_size"):
            if getattr(self, name) is not None and self.features is None:
                raise ValueError(f"{name} is for features; remove it")
        if self.image_shape is not None and self.image_size is not None:
            raise ValueError("image_shape is for raw pixels, which have no size to change")
        return self


class LabelNoise(Section):
    """Wrong labels on purpose, among the candidates only."""

    fraction: Fraction
    """The share of candidates that get a wrong label."""
    seed: Seed = 0
    """The seed that decides which labels, and what they become."""


class Data(Section):
    """The candidates, the targets, and what is held out for evaluation."""

    train: Source
    """Where the candidates come from."""
    columns: Columns
    """Which columns are what; all others pass through as they are, from CSV as the text they are
    unless it is that of a number."""
    validation: Targets | None = None
    """The target: a source, a share of the training source ({fraction: 0.2}), or several sources by
    name."""
    test: Held | None = None
    """Rows held out for `evaluation`: a source, or a share of the training source."""
    seed: Seed = 0
    """The seed of random splits, of label noise, and of the halves of the target."""
    standardize: bool = False
    """Whether every feature is shifted and scaled to mean 0 and deviation 1 over the training
    source."""
    label_noise: LabelNoise | None = None
    """Wrong labels planted among the candidates, to see whether a policy finds them."""
    relabelled: Source | None = None
    """Corrected labels of candidates, which replace those read: `row`, as scores.parquet numbers
    them, and the column of labels. What they were worth is measured with what choosing is."""
    max_length: Annotated[int, Field(ge=2, le=10**9)] | None = None
    """Tokens after which a text is cut; 1024 if not given, or fewer where the model takes fewer."""
    min_length: Count | None = None
    """Tokens to learn from that a text needs once cut. Texts with fewer are left out of every part,
    and counted; if not given, a text with nothing to learn is refused."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        on_text = self.columns.form != "features"
        if self.standardize and on_text:
            raise ValueError("standardize is for features; remove it")
        for name in ("max_length", "min_length"):
            if getattr(self, name) is not None and not on_text:
                raise ValueError(f"{name} is for text; remove it")
        return self
