"""What comes of a window: a decision on every batch, and a report on the whole."""

from dataclasses import dataclass

from torch import Tensor

from curate.selection.policies import Array


@dataclass
class WindowReport:
    """What one window came to.

    horizon: K asked for. steps: how many were decided; fewer at the end of an
    epoch. offered, kept: candidates.
    target_loss: mean over the targets where the window would end with everything kept.
    predicted: change of it that is expected of the decision, to first order in
    the steps' gradients. realised: what it was, measured when the loop has
    trained on the window and asks for the next; None until then. seconds: spent choosing.
    gain: with `keep="auto"`, the loss on target rows that did not choose after training on
    everything, less that after training on what was or would have been kept; None until known.
    """

    horizon: int
    steps: int
    offered: int
    kept: int
    target_loss: float
    predicted: float
    seconds: float
    realised: float | None = None
    gain: float | None = None

    @property
    def ratio(self) -> float | None:
        """Realised over predicted: near 1 where the linear picture holds."""
        if self.realised is None or self.predicted == 0:
            return None
        return self.realised / self.predicted

    def metrics(self) -> dict[str, float | None]:
        """For a tracker: its numbers by name, what was kept as a share."""
        return {
            "target_loss": self.target_loss,
            "predicted": self.predicted,
            "realised": self.realised,
            "gain": self.gain,
            "kept": self.kept / self.offered,
            "horizon": self.horizon,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Decision:
    """What becomes of one batch.

    influences: shape (Q, n), all weights 1. values: what was ranked, shape (n,).
    weights: in the mean that the loop is to take, shape (n,); 0 is left out.
    """

    influences: Tensor
    values: Array
    weights: Array

    @property
    def kept(self) -> Array:
        """Shape (n,), bool."""
        kept: Array = self.weights > 0
        return kept
