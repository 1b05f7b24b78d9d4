"""The base of every section of a recipe, and the kinds of numbers they share."""

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    WrapValidator,
)
from pydantic_core import core_schema

Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no coercion, no NaN. Docstrings describe its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def sections(root: type[S]) -> list[type[S]]:
    """A section's class and all classes that inherit from it, each before its heirs."""
    return [root, *(heir for child in root.__subclasses__() for heir in sections(child))]


def one_of(names: Iterable[str]) -> GetPydanticSchema:
    """A value that must be one of these names: `Literal`, for names from a table."""
    return GetPydanticSchema(lambda _, __: core_schema.literal_schema(list(names)))


def in_words(message: str) -> WrapValidator:
    """One message, with `{got}` in it, for whatever is wrong with a value."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValueError:
            raise ValueError(message.format(got=repr(value))) from None

    return WrapValidator(check)


def _no_repeats(value: list[Any] | None) -> list[Any] | None:
    if value is not None and len(set(value)) < len(value):
        raise ValueError(f"must not repeat itself but got {value}")
    return value


NO_REPEATS = AfterValidator(_no_repeats)
