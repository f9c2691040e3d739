"""Base class of the backbones."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from common.errors import InputError, listed


class Backbone(nn.Module):
    """Images N×3×S×S to features N×`out_features`, for any S ≥ 32."""

    out_features: int
    embedding_dim: ClassVar[int] = 128  # of the linear head that follows in the papers

    def feature_map(self, images: Tensor) -> Tensor:
        """Map images, N×3×S×S, to the last map before averaging, N×`out_features`×h×w.

        Raises InputError for a network without one.
        """
        raise InputError(f"{type(self).__name__} has no map of features before averaging")

    def forward(self, images: Tensor) -> Tensor:
        return self.feature_map(images).mean(dim=(2, 3))

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Initialise a layer of the head; by default, as PyTorch does."""

    def load_weights(self, weights: Mapping[str, Tensor], where: Path) -> None:
        """Load a state dict from the file `where`; raises InputError as `load_matching` does."""
        load_matching(self, weights, where)


def load_matching(module: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Load `weights`, from the file `where`, into `module`.

    Only BatchNorm's counters may be missing, which old files do not have. Raises InputError with
    the numbers of missing and unexpected names and of wrong shapes.
    """
    expected = module.state_dict()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    faults = {
        "missing": sorted(expected.keys() - weights.keys() - counters),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in expected.keys() & weights.keys()
            if expected[name].shape != weights[name].shape
        ),
    }  # fmt: skip
    if any(faults.values()):
        counts = "; ".join(
            f"{len(names)} {fault} ({listed(names, 2)})" for fault, names in faults.items() if names
        )
        raise InputError(f"{where} does not match the network's {len(expected)} names: {counts}")
    module.load_state_dict({**expected, **weights})
