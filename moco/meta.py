"""Models of meta-learning methods: adapt to a task, classify its images."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import refusing
from datasets.images import ImageSet

from .config import STAGES
from .evaluate import Frozen, Predictor, by_id, require_finite


class MetaLearner(Frozen):
    """The model of a meta-learning method's checkpoint, which adapts to a task from its support set
    alone.

    The model has two methods. `embed(images)` maps images, B×3×S×S, to what does not depend on the
    task, B×…: embeddings, feature maps or the images themselves. `adapt(embeddings, labels)`
    returns a function, or a module in evaluation mode, from embeddings to probabilities, B×N.
    """

    @staticmethod
    def build(checkpoint: dict) -> nn.Module:
        stage = STAGES[checkpoint["stage"]]
        model = stage.model(checkpoint["args"])
        with refusing(f"the checkpoint of {stage.title} is invalid"):
            model.load_state_dict(checkpoint["state_dict"])
        return model.eval().requires_grad_(False)

    def embed(self, images: ImageSet, progress: str | None = None) -> np.ndarray:
        """Return `model.embed` of the evaluation views of M images, M×…."""
        return self._encode(self.network.embed, images, progress)

    def adapt(
        self, embeddings: np.ndarray, labels: Sequence[int]
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Adapt to a task with the embedded support set, N·K×…, labelled 0…N−1.

        Returns a function from embeddings, M×…, to probabilities, M×N.
        """
        classify = self._adapted(embeddings, labels)

        @torch.no_grad()
        def predict_proba(embeddings: np.ndarray) -> np.ndarray:
            rows = torch.from_numpy(embeddings).split(self.batch_size)
            found = torch.cat([classify(part.to(self.device)).cpu() for part in rows])
            return require_finite(found.numpy())

        return predict_proba

    def predict(
        self, images: ImageSet, support: ImageSet, progress: str | None = None
    ) -> np.ndarray:
        """Return class probabilities, M×N, of M images, adapted on `support`; as by `adapt` and
        `embed`, but without holding all embeddings in memory."""
        classify = self._adapted(self.embed(support), support.labels)
        return self._encode(lambda image: classify(self.network.embed(image)), images, progress)

    def _adapted(self, embeddings: np.ndarray, labels: Sequence[int]) -> Callable[[Tensor], Tensor]:
        support = torch.from_numpy(embeddings).to(self.device)
        return _each(self.network.adapt(support, torch.tensor(labels, device=self.device)))

    def _encode(
        self, function: Callable[[Tensor], Tensor], images: ImageSet, progress: str | None
    ) -> np.ndarray:
        return self.encode(_Function(_each(function)), images, progress)


def _each(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Apply `function` to one row of a batch after the other. Its rounding would depend on the rest
    of the batch; a prediction shall depend on its own image alone, bit for bit."""
    return lambda batch: torch.cat([function(row.contiguous()) for row in batch.split(1)])


class _Function(nn.Module):
    """A function as a module without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.forward = function


def adaptations(learner: MetaLearner, images: ImageSet) -> Predictor:
    """Embed `images`, the support and query images of any number of tasks, once; return the
    predictor, which adapts to a task."""
    embeddings = by_id(images, learner.embed(images, progress="embedding"))

    def predict(support: ImageSet | None, query: ImageSet) -> tuple[np.ndarray, dict[str, float]]:
        assert support is not None
        return learner.adapt(embeddings(support), support.labels)(embeddings(query)), {}

    return predict
