"""Models and objectives of the user's own, named by `package.module:name`."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from curate.errors import CurateError, ModelError
from curate.models.objectives import Batch, FunctionObjective, Model, Objective


class foreign_code:  # noqa: N801 (used like a function, as contextlib's are)
    """Run code that is not ours: whatever it raises becomes one ModelError that says what ran.

    An ImportError of its own is left to the caller, who knows what was looked for.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        ours = isinstance(error, CurateError | ImportError | KeyboardInterrupt)
        if error is not None and not ours:
            message = " ".join(str(error).split())
            raise ModelError(
                f"{self.what} raised {type(error).__name__}{': ' if message else ''}{message} "
                "(CURATE_TRACEBACK=1 shows where)."
            ) from error


def load_attribute(path: str, key: str) -> Any:
    """The object that `package.module:name` names; `key` is the recipe's, for errors.

    The working directory is searched too, as `python -m` does.

    Raises:
        ModelError: the path is malformed, or nothing is there.
    """
    module_name, colon, attribute = path.partition(":")
    if not (colon and module_name and attribute):
        raise ModelError(f"{key}: must look like package.module:name but got {path!r}.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with foreign_code(f"{key}: importing {module_name}"):
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise ModelError(f"{key}: cannot import {module_name}: {error}.") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise ModelError(f"{key}: module {module_name} has no {attribute}.") from error


def build_model(path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call the factory at `path` with `arguments`; it must return an `nn.Module`."""
    factory = load_attribute(path, "model.factory")
    if not callable(factory):
        raise ModelError(f"model.factory: {path} is a {type(factory).__name__}, not a function.")
    with foreign_code(f"model.factory: {path}"):
        module = factory(**arguments)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"model.factory: {path} must return a torch.nn.Module but got a "
            f"{type(module).__name__}."
        )
    return module


def load_objective(path: str) -> Objective:
    """The objective at `path`: a function (model, batch) -> losses, or an Objective."""
    found = load_attribute(path, "objective")
    if isinstance(found, type) or not callable(found):
        return as_objective(found, path)

    def guarded(model: Model, batch: Batch) -> Any:
        with foreign_code(f"objective: {path}"):
            return found(model, batch)

    return as_objective(guarded, path)


def as_objective(found: Any, name: str) -> Objective:
    """An Objective, a class of them, or a function (model, batch) -> losses; as an Objective."""
    if isinstance(found, type):
        found = found()
    if all(callable(getattr(found, part, None)) for part in ("losses", "sizes", "metrics")):
        objective: Objective = found
        return objective
    if callable(found):
        function: Callable[..., Any] = found
        return FunctionObjective(function, name)
    raise ModelError(
        f"objective: {name} is a {type(found).__name__}; it must be a function (model, batch) "
        "-> losses, or an object with losses, sizes and metrics."
    )
