"""Models and objectives of the user's own, named by `package.module:name`."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from curate.errors import ModelError
from curate.models.objectives import FunctionObjective, Objective


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
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
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
    try:
        module = factory(**arguments)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OSError) as error:
        raise ModelError(f"model.factory: {path} raised {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"model.factory: {path} must return a torch.nn.Module but got a "
            f"{type(module).__name__}."
        )
    return module


def load_objective(path: str) -> Objective:
    """The objective at `path`: a function (model, batch) -> losses, or an Objective."""
    return as_objective(load_attribute(path, "objective"), path)


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
