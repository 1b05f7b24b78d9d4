"""Look-ahead in Hugging Face's Trainer: a mixin."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curate.datasets import IGNORED
from curate.errors import OptionError
from curate.influence import Target
from curate.integrations.loader import as_targets
from curate.integrations.loop import LiveLoop, one_mean
from curate.integrations.options import WEIGHTS, Options
from curate.integrations.training import LiveTraining
from curate.integrations.window import WindowReport
from curate.models import LabelsObjective, Objective, as_objective, find_shift
from curate.rules import unwrap
from curate.runtime.files import write_whole

STATE = "look_ahead_{}.pt"
"""The state of look-ahead in a checkpoint of the Trainer's, of each process its own."""


class LookAheadMixin:
    """Put it before a Trainer class, and each step trains on the part of its batch worth keeping.

        class LookAheadTrainer(LookAheadMixin, Trainer): ...

        trainer = LookAheadTrainer(
            model, args, train_dataset=noisy, targets=clean, look_ahead={"horizon": 4, "keep": 0.5}
        )

    Batches are drawn a window ahead where the Trainer draws those of one optimizer step, gradient
    accumulation included, and are cut before it counts their items. Optimizer, schedule and
    clipping are the Trainer's, and so is resuming (`resume_from_checkpoint`), which goes on as if
    training had not stopped. It runs in one process or in several (`torchrun`), on one device
    each. See `LookAheadLoader` for cost.

    Args:
        targets: the dataset to be good at, or several by name; the eval_dataset if None, which
            then is no longer a fair judge of the model.
        objective: (model, batch) -> one loss per example; the model's own loss on `labels` if
            None, see `LabelsObjective`.
        look_ahead: see `Options`. Columns that `label`, `group_by` and `row` name stay in the
            batches, even with `remove_unused_columns`; the model gets those that it accepts.

    Raises:
        OptionError: an argument that cannot be followed.
    """

    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    eval_dataset: Any
    train_dataset: Any
    state: Any
    model_accepts_loss_kwargs: bool
    get_eval_dataloader: Callable[[Any], Any]
    label_names: list[str]
    _signature_columns: list[str]

    def __init__(
        self,
        *args: Any,
        targets: Any = None,
        objective: Objective | Callable[[Any, Any], Tensor] | None = None,
        look_ahead: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._options = _options(look_ahead or {})
        super().__init__(*args, **kwargs)
        self._objective = objective
        if objective is None and (
            self.args.label_smoothing_factor or getattr(self, "compute_loss_func", None)
        ):
            raise OptionError(
                "label smoothing and compute_loss_func make a loss of their own; give it as "
                "objective, (model, batch) -> one loss per example."
            )
        self._target_data = self.eval_dataset if targets is None else targets
        if self._target_data is None:
            raise OptionError("give targets, a dataset to be good at, or an eval_dataset.")
        if self.args.n_gpu > 1:
            raise OptionError("look-ahead runs on one device; set CUDA_VISIBLE_DEVICES to one.")
        self._chooser: LiveLoop | None = None
        self._source: Iterator[Any] | None = None
        self._cut: Iterator[Any] = iter(())
        self._state: Any = None

    @property
    def look_ahead_reports(self) -> list[WindowReport]:
        """What every window of the last training came to."""
        return [] if self._chooser is None else self._chooser.reports

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does."""
        self._chooser = self._source = self._state = None
        result = super().train(*args, **kwargs)  # type: ignore[misc]
        self._settle()
        return result

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any) -> Any:
        """The batches of one optimizer step, cut, and their items counted by the Trainer."""
        self.model.train()  # as its training_step does, but before a window is simulated
        if epoch_iterator is not self._source:
            self._source = epoch_iterator
            if self._chooser is None:
                self._chooser = self._make_chooser()
                self._chooser.dataset = self.train_dataset
                if self._state is not None:
                    self._chooser.load_state_dict(self._state)
            self._cut = self._chooser.stream(
                epoch_iterator, lambda: self.state.max_steps - self.state.global_step
            )
        return super().get_batch_samples(self._cut, *args)  # type: ignore[misc]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        if self._chooser is not None:
            state = self._chooser.state_dict() | {"place": None}  # which the Trainer finds itself
            write_whole(
                Path(output_dir) / STATE.format(self.args.process_index),
                lambda part: torch.save(state, part),
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE.format(self.args.process_index)
        if not path.exists():
            return
        self._state = torch.load(path, map_location="cpu", weights_only=True)
        if self.args.ignore_data_skip:  # the batches to come are others
            self._state |= {"rest": None, "report": None}

    def _load_best_model(self) -> None:
        self._settle()  # while the weights are those of the last step
        super()._load_best_model()  # type: ignore[misc]

    def _settle(self) -> None:
        if self._chooser is not None:
            self._chooser.finish()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        columns = [*self._signature_columns, *self._options.keys]
        self._signature_columns = list(dict.fromkeys(columns))

    def _prepare_inputs(self, inputs: Any) -> Any:
        return super()._prepare_inputs(self._for_model(inputs))  # type: ignore[misc]

    def _for_model(self, batch: Any) -> Any:
        unknown = self._unknown_to_model()
        return {k: v for k, v in batch.items() if k not in unknown} if unknown else batch

    def _unknown_to_model(self) -> list[str]:
        """Keys that the options read, but neither the model nor the Trainer's loss."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        accepted = {*inspect.signature(type(model).forward).parameters, *self.label_names}
        return [key for key in self._options.keys if key not in accepted]

    def _make_chooser(self) -> LiveLoop:
        optimizer, clip_norm = unwrap(self.optimizer), self.args.max_grad_norm or None
        training = LiveTraining(self.model, optimizer, self.lr_scheduler, clip_norm)
        targets = self._targets()
        batch = _labeled(targets[0], training.read()[0].device)
        with training.simulated(self._objective):
            self.model.eval()
            counted = self.model_accepts_loss_kwargs and self._divides_by_count(batch)
            objective = self._objective or self._default_objective(batch, counted)
        # if the Trainer believes that the model was given a count, it adds up the means of a
        # step's batches undivided, and those of all processes where the count is theirs
        added_up = self.model_accepts_loss_kwargs and not counted
        everywhere = getattr(self.args, "average_tokens_across_devices", False)
        if counted:
            training.mean_over = "step" if everywhere else "process"
        processes = training.ranks.size if everywhere else 1
        return LiveLoop(
            training,
            as_objective(objective, getattr(objective, "__name__", "objective")),
            targets,
            self._options,
            self.args.gradient_accumulation_steps,
            (lambda count: float(count * processes)) if added_up else one_mean,
        )

    def _targets(self) -> list[Target]:
        named = isinstance(self._target_data, Mapping)
        data = self._target_data if named else {"target": self._target_data}
        return as_targets({name: self.get_eval_dataloader(part) for name, part in data.items()})

    def _default_objective(self, batch: Any, counted: bool) -> Objective:
        unknown = self._unknown_to_model()
        shifts = find_shift(self.model, batch, unknown)
        trainer_shifts = getattr(self, "_loss_shifts_labels", False)
        return LabelsObjective(
            shifts=shifts,
            counts_first=counted and shifts and not trainer_shifts,
            unknown_to_model=unknown,
        )

    @torch.no_grad()
    def _divides_by_count(self, batch: Any) -> bool:
        """Whether the model's loss heeds the count of items that the Trainer hands it."""
        inputs = self._for_model(batch)
        mean = getattr(self.model(**inputs), "loss", None)
        if mean is None:
            return False
        count = torch.tensor(10**6, device=mean.device)
        divided = self.model(**inputs, num_items_in_batch=count).loss
        return not torch.isclose(mean, divided, rtol=1e-3)


def _labeled(target: Target, device: torch.device) -> Any:
    """Some examples of a target of which one at least has labels; the first, if none has."""
    examples = target.examples
    batches = (examples.batch(rows, device) for rows in examples.chunks(8))
    return next(
        (batch for batch in batches if (batch.get("labels", torch.zeros(1)) != IGNORED).any()),
        examples.batch(torch.arange(1), device),
    )


def _options(look_ahead: Mapping[str, Any]) -> Options:
    names = sorted(Options.__dataclass_fields__)
    unknown = sorted(look_ahead.keys() - set(names))
    if unknown:
        raise OptionError(f"look_ahead has no {unknown[0]!r}; it knows {', '.join(names)}.")
    options = Options(**look_ahead)
    if options.keep == WEIGHTS:
        raise OptionError("the Trainer has no place for weights; give keep a share, such as 0.5.")
    return options
