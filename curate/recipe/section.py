"""The base of every section of a recipe, and the kinds of numbers they share."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WrapValidator

Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no coercion, no NaN. A key's docstring describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def in_words(message: str) -> WrapValidator:
    """Whatever is wrong with a value is said in one message, which has `{got}` in it."""

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
