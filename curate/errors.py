"""What can go wrong, as a tree.

CurateError
├── UserError              a mistake in what we were given: one line, exit code 2
│   ├── RecipeError        a key of the recipe, named by its path
│   ├── DataError          a source, a column or a row of the data
│   ├── NothingKeptError   a budget that no row meets
│   ├── ModelError         a factory, a layer or an output of the model
│   ├── OptimizerError     an optimizer that is not modeled, or not that way
│   ├── SimulationError    a loop that does not train as it is simulated
│   ├── OptionError        an argument out of range (also a ValueError)
│   ├── OutputError        a place we will not write to
│   ├── UnfinishedError    a run that was not finished: in the way, or cannot be resumed
│   └── MissingExtraError  an optional package that is not installed
└── RunError               the run itself failed: one line, exit code 1
    └── NonFiniteError     a loss, state or score became NaN or infinite
"""


class CurateError(Exception):
    """Base of every error that curate raises on purpose."""

    exit_code = 1


class UserError(CurateError):
    """The recipe, the data, the model or the command line needs changing."""

    exit_code = 2


class RecipeError(UserError):
    """A key of the recipe is unknown, missing or has a value that makes no sense."""


class DataError(UserError):
    """The data cannot be read, or a column or row of it cannot be used."""


class NothingKeptError(UserError):
    """No score reaches the threshold that was asked for, or the first row is beyond the tokens."""


class ModelError(UserError):
    """The model cannot be built, or does something that scores cannot follow."""


class OptimizerError(UserError):
    """The optimizer, or one of its options, is not modeled."""


class SimulationError(UserError):
    """A loop's gradient or update is not the one that is simulated."""


class OptionError(UserError, ValueError):
    """An argument is out of range, or does not go with another."""


class OutputError(UserError):
    """The output directory exists already or cannot be written."""


class UnfinishedError(UserError):
    """A run that ended early is in the way, or cannot be resumed."""


class MissingExtraError(UserError):
    """A package that curate needs only for this is not installed."""

    def __init__(self, package: str, purpose: str, extra: str | None = None) -> None:
        """`extra`: of ours that has the package, if one does."""
        what = package if extra is None else f'"curate[{extra}]"'
        super().__init__(
            f"{purpose} needs the package {package}; install it with `pip install {what}`."
        )


class RunError(CurateError):
    """The run could not go on, though nothing in the input looked wrong beforehand."""


class NonFiniteError(RunError):
    """A loss, a parameter or a score became NaN or infinite."""
