"""Look-ahead in a training loop of one's own: wrap the data loader, change nothing else."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from curate.datasets import BatchExamples
from curate.errors import OptionError
from curate.influence import Target
from curate.integrations.drawing import Drawing
from curate.integrations.loop import LiveLoop, one_mean
from curate.integrations.options import LoopOptions, Options
from curate.integrations.training import LiveTraining
from curate.integrations.window import Decision, WindowReport
from curate.models import Objective, as_objective
from curate.models.hidden import Hidden
from curate.models.randomness import undisturbed, usual_sources
from curate.rules import unwrap


class LookAheadLoader:
    """Iterate this in place of a data loader: each batch is cut to what is worth training on.

    At each window it draws K steps' batches, takes the optimizer as it stands (moments, step
    counts, param groups, learning rates), simulates the K steps, scores every candidate against
    the targets where they end, and yields the batches cut to what is kept. The loop around it
    does its own forward, backward and step, unaware.

        loader = LookAheadLoader(loader, model, optimizer, losses, targets, horizon=4)
        for batch in loader:
            ...

    Nothing that the caller has is changed: not the model, its mode or its gradients, not the
    optimizer, the scheduler or any generator of random numbers, nor what model, objective and
    hooks remember beside. With `keep=1.0` nothing is simulated or scored, and training is bit for
    bit what it was.

    Where several processes train together (`DistributedDataParallel`, Accelerate, or a loop that
    averages gradients itself), make it in all of them, each with its own part of the data: what
    they draw at the same time is one batch, of which they keep what one process with all of it
    would. Each multiplies its gradients by what makes their mean the mean over all rows kept
    (`Evening`); so an accumulating loop goes back once per batch. A process that keeps nothing is
    given one row, which does not count.

    Before the first window the optimizer is tried (`rehearse`), and steps of the loop are watched
    (`Witness`), two at once and later ones in 1 % of the time: gradient and update must be those
    that are simulated.

    Cost of choosing, in gradients of one step's batch, beside training itself on what is kept. At
    a horizon of 1: 1.3 for the candidates and one of all target rows, with effort "exact"; 2/3 and
    a quarter with "balanced", 2/3 and a tenth with "fast", a few checks aside (`Pace`). At a longer
    one, per step, R (1 + 1.3) for R rounds, R less at the first of a window of up to four, and
    one more where a step's gradient was not kept; per window, R gradients of the targets and one
    forward pass over them. Memory beside the loop's: K states of the optimizer (at most
    `snapshots`) and their gradients, one batch's graph, and a window of batches; at effort below
    exact, a gradient of the targets.

    Args:
        loader: yields batches of any structure whose tensors have the examples first.
        model, optimizer: the ones that are trained; SGD, Adam, AdamW, RMSprop, Adagrad or
            Adafactor of torch.optim.
        objective: (model, batch) -> one training loss per example, shape (n,), or an `Objective`;
            the loop is taken to train on their mean over the step.
        targets: what to be good at: a batch, a list or loader of batches, or several by name.
            They are kept in memory, all of them in every process.
        scheduler: stepped once per optimizer step by the loop; read, never stepped.
        clip_norm: the norm that the loop clips gradients to.
        autocast: what the loop's passes are autocast to, such as torch.bfloat16. If None, it is
            read off the loop's first call of the model; a window before that is in float32.
        accumulate: batches whose gradients the loop adds up for one optimizer step, each the mean
            of its batch; where they differ in size, they are multiplied so that all rows kept
            count alike.
        scale: n -> the loop's gradient for a step of n batches, in units of the mean over all
            candidates; 1 by default. A loop that divides by `accumulate` even at the shorter end
            of an epoch has `lambda n: n / accumulate`.
        options: see `Options`: horizon, keep, rounds, label, group_by, log, row, tracker and more.

    Raises:
        UserError: at construction, for an optimizer, model or argument that cannot be followed,
            with the remedy.
        SimulationError: while iterating or from `optimizer.step`, says how the loop trains
            otherwise than it is simulated.
        NonFiniteError: while iterating, names step and parameter.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        model: nn.Module,
        optimizer: Any,
        objective: Objective | Callable[[Any, Any], Tensor],
        targets: Any,
        *,
        scheduler: Any | None = None,
        clip_norm: float | None = None,
        autocast: torch.dtype | None = None,
        accumulate: int = 1,
        scale: Callable[[int], float] = one_mean,
        **options: Unpack[LoopOptions],
    ) -> None:
        checked = Options(**options)
        if accumulate < 1:
            raise OptionError(f"accumulate must be at least 1 but got {accumulate}.")
        _refuse_counted(loader)
        self.loader = loader
        self._chooser = LiveLoop(
            LiveTraining(model, unwrap(optimizer), scheduler, clip_norm, autocast),
            as_objective(objective, getattr(objective, "__name__", "objective")),
            as_targets(targets),
            checked,
            accumulate,
            scale,
        )

    @property
    def reports(self) -> list[WindowReport]:
        """What every window so far came to, or since a state was loaded, and the one before."""
        return self._chooser.reports

    def state_dict(self) -> dict[str, Any]:
        """All that the choosing still to come depends on, to go on as if it had not stopped.

        Take it between steps, and save it beside those of model, optimizer and scheduler, and of
        the generators that the loop itself draws from: plain values and tensors, for `torch.save`
        and `torch.load`, `weights_only` too. A window that is left in the middle is not scored
        again: the weights of its other batches are in the state, and a digest of these batches.
        It takes a few kilobytes, and the time for that digest.
        """
        state: dict[str, Any] = self._chooser.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, with the next pass over the loader, where `state` was taken.

        That pass gives what was left of the epoch. A loader that has `state_dict` and
        `load_state_dict` itself is put where it was. Any other is begun again, and what had been
        handed out is drawn and skipped: it has to give the same batches in the same order. Global
        generators, and those that the loader and its sampler hold, are meanwhile what they were,
        so a shuffled DataLoader does; call `set_epoch` where the loop does. The log goes on as
        the same run; what it has from after the state was taken is not read any more.

        Raises:
            OptionError: the state is of other options, targets or parameters, or of another
                optimizer; nothing is loaded.
            DataError: on the next pass: these are not the batches that were decided on.
        """
        self._chooser.load_state_dict(state)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet: being copied or unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        return self.stream(self.loader)

    def stream(
        self,
        batches: Iterable[Any],
        left: Callable[[], int | None] = lambda: None,
        most: int | None = None,
    ) -> Iterator[Any]:
        """Other batches in the same training, cut likewise.

        left: gives how many steps it will still take. most: batches of an epoch, None for all.
        """
        return self._chooser.stream(batches, left, most)

    def settle(self) -> None:
        """Measure what the last window did, now that it has been trained on.

        This happens by itself when the loop asks for another batch; call it after a training that
        did not run to the end of the loader.
        """
        self._chooser.finish()

    def choose(self, window: Sequence[Any]) -> list[Decision]:
        """Decide on a window of the caller's batches; adds a report."""
        return self._chooser.choose(window)


def as_targets(targets: Any, change: Callable[[Any], Any] = lambda batch: batch) -> list[Target]:
    """A batch, a list or loader of batches, or several of these by name; `change`: each batch."""
    named = isinstance(targets, Mapping) and not _is_batch(targets)
    parts = targets.items() if named else [("target", targets)]
    for name, part in parts:
        if not _is_batch(part) and not isinstance(part, Iterable):
            raise OptionError(
                f"{name}: must be a batch or batches but is a {type(part).__name__}; a batch is a "
                "tensor, dictionary, tuple, list or dataclass of tensors."
            )
    # a DataLoader draws a seed, its sampler an order, its dataset augmentations
    usual = usual_sources(torch.device("cpu"))
    with undisturbed([*usual, *Hidden(targets).sources]):
        parsed = [
            Target(
                name,
                BatchExamples(
                    [part] if _is_batch(part) else Drawing().batches(map(change, _whole(part)))
                ),
            )
            for name, part in parts
        ]
    empty = [target.name for target in parsed if not len(target.examples)]
    if empty or not parsed:
        raise OptionError(f"{empty[0] if empty else 'targets'}: holds no examples to be good at.")
    return parsed


def _whole(loader: Any) -> Any:
    """A loader, whole, of which Accelerate has given each process a part."""
    sampler: Any = getattr(loader, "batch_sampler", None)
    if type(sampler).__name__ != "BatchSamplerShard":
        return loader
    return DataLoader(
        loader.dataset, batch_sampler=sampler.batch_sampler, collate_fn=loader.collate_fn
    )


def _is_batch(value: Any) -> bool:
    """Whether a value is one batch: its parts, not the parts of its parts, are tensors."""
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, list | tuple | Mapping):
        return any(isinstance(part, Tensor) for part in parts)
    return isinstance(value, Tensor) or hasattr(value, "__dataclass_fields__")


def _refuse_counted(loader: Any) -> None:
    """Accelerate's own gradient accumulation watches for the loader's last batch."""
    state = getattr(loader, "gradient_state", None)
    if state is not None and getattr(state, "num_steps", 1) > 1:
        raise OptionError(
            "a loader prepared by Accelerate tells its gradient accumulation when it is at its "
            "end, and here it is read ahead; wrap the loader you had before accelerator.prepare "
            "(in several processes, one that gives each its part) and give accumulate."
        )
