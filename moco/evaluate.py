"""Embeddings of images, the classifier f_c on a support set, and k-NN scores."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer
from torch import Tensor, nn
from tqdm import tqdm

from common.errors import InputError
from common.names import counted
from datasets.cache import pixels
from datasets.episode import Task
from datasets.images import ImageSet, TransformedImages
from trainer.performance import prepare

from .augment import plain_view, random_view
from .batch_augment import to_float
from .calibration import best_temperature, with_temperature
from .checkpoint import query_encoder
from .loader import ImageLoader, SupportCopies

NEIGHBOURS = 20
MANY = 500  # images that are worth starting processes to read them


def encode(
    encoder: nn.Module,
    images: ImageSet,
    image_size: int,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> np.ndarray:
    """Return the embeddings of the evaluation views of M images, M×D, not normalised, in order.

    Runs in evaluation mode, not compiled, and restores the encoder's mode. Images `cached` at this
    size are read from the cache, others by `workers` processes. `progress` is the title of a
    progress bar.
    """
    stored = pixels(images)
    if stored is not None and stored.shape[1] == image_size:
        starts = range(0, len(images), batch_size)
        batches = (torch.from_numpy(stored[i : i + batch_size]) for i in starts)
    else:
        views = TransformedImages(images, plain_view(image_size))
        batches = ImageLoader(views, workers, batch_size=batch_size)
    return encode_batches(encoder, batches, len(images), device, progress)


@torch.no_grad()
def encode_batches(
    encoder: nn.Module,
    batches: Iterable[Tensor],
    number: int,
    device: torch.device | str,
    progress: str | None,
) -> np.ndarray:
    """Encode `number` images, in batches of views, B×3×S×S, values 0–1, or of uint8 pixels,
    B×S×S×3; see `encode`. Raises InputError for NaN or Inf."""
    was_training = encoder.training
    encoder.eval()
    embeddings = []
    hidden = None if progress else True  # None: hidden unless on a terminal
    with tqdm(total=number, desc=progress, unit="img", disable=hidden) as bar:
        for images in batches:
            images = images.to(device)
            images = to_float(images) if images.dtype == torch.uint8 else images
            # `forward`, not a call: a compiled encoder would be compiled for each size of batch.
            embeddings.append(encoder.forward(images).cpu())
            bar.update(len(images))
    encoder.train(was_training)
    return require_finite(torch.cat(embeddings).numpy())


def require_finite(found: np.ndarray) -> np.ndarray:
    """Return what a network made of M images, M×…. Raises InputError for NaN or Inf."""
    if wrong := int((~np.isfinite(found.reshape(len(found), -1))).any(axis=1).sum()):
        raise InputError(
            f"the network gives NaN or Inf for {wrong} of {len(found)} images: its weights have "
            "diverged, or the images have unusual values"
        )
    return found


def fit_classifier(
    embeddings: np.ndarray, labels: Sequence[int], normalize: bool = False
) -> Pipeline:
    """Fit f_c, a logistic regression with scikit-learn's default C: stage (b).

    embeddings: of M support images, M×D, or of C copies of each, M×C×D; labels: M. `predict_proba`
    of the result maps embeddings, M×D, to probabilities, M×N.

    `normalize` L2-normalises them first, as in Tian et al. 2020. Fitted in float64 to convergence:
    with early stopping or float32, changes of 1e-6 in the embeddings change probabilities by 7e-2.
    """
    rows = embeddings.reshape(-1, embeddings.shape[-1])
    labels_of_rows = np.repeat(labels, len(rows) // len(labels))
    steps = [Normalizer()] if normalize else []
    f_c = make_pipeline(*steps, LogisticRegression(solver="newton-cg", tol=1e-8, max_iter=1000))
    return f_c.fit(rows.astype(np.float64), labels_of_rows)


def linear_map(f_c: Pipeline) -> np.ndarray | None:
    """Return f_c as N×(D+1) weights and biases of logits whose softmax is its `predict_proba`.

    None if it normalises the embeddings first.
    """
    if len(f_c) > 1:
        return None
    regression = f_c[-1]
    rows = np.column_stack([regression.coef_, regression.intercept_])
    # Of two classes scikit-learn has one row, the log odds of the second.
    return np.concatenate([-rows / 2, rows / 2]) if len(rows) == 1 else rows


def normalize_by_image(network: nn.Module, image_size: int) -> None:
    """Make each BatchNorm of feature maps normalise by the statistics of the image at hand.

    The authors' 4-conv-block uses those of the batch at test time, too, and theirs is one image.
    Raises InputError for a network without such a layer, or whose maps have a single pixel there.
    """
    layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, layer in layers.items():
        own = nn.InstanceNorm2d(layer.num_features, layer.eps, affine=layer.affine)
        own.load_state_dict({k: v for k, v in layer.state_dict().items() if k in own.state_dict()})
        own = own.eval().requires_grad_(False)
        parent, _, last = name.rpartition(".")
        after = [layer.drop, layer.act] if hasattr(layer, "act") else []  # of timm
        setattr(network.get_submodule(parent), last, nn.Sequential(own, *after))
    if not layers:
        raise InputError("--norm-statistics image: the network has no BatchNorm of feature maps")
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, image_size, image_size))
    except ValueError:
        raise InputError(
            f"--norm-statistics image: at {image_size} pixels a map to normalise has one pixel"
        ) from None


class Frozen:
    """A network of a checkpoint, without gradients, and how its images are encoded."""

    build: Callable[[dict], nn.Module]  # makes the network of a checkpoint, in evaluation mode

    def __init__(
        self,
        checkpoint: dict,
        device: torch.device | str = "cpu",
        amp: bool = False,
        batch_size: int = 32,
        workers: int = 0,
        norm_statistics: str = "running",
    ):
        self.network = self.build(checkpoint)
        if norm_statistics == "image":
            normalize_by_image(self.network, checkpoint["args"]["image_size"])
        self.device, self.batch_size, self.workers = torch.device(device), batch_size, workers
        self.image_size = checkpoint["args"]["image_size"]
        self.aug_plus = checkpoint["args"]["aug_plus"]
        prepare(self.network, self.device, amp)

    def encode(self, network: nn.Module, images: ImageSet, progress: str | None) -> np.ndarray:
        """Return what `network` makes of the evaluation views of M images, M×…."""
        return encode(
            network, images, self.image_size, self.batch_size, self.workers, self.device, progress
        )


class FrozenEncoder(Frozen):
    """Frozen query encoder f_q or f_q′ of a checkpoint, with its image size and augmentation."""

    build = staticmethod(query_encoder)
    _embedded: tuple[ImageSet, np.ndarray] | None = None

    def embed(self, images: ImageSet, progress: str | None = None) -> np.ndarray:
        """Return the embeddings of the evaluation views of M images, M×D, not normalised.

        Those of the last set are kept.
        """
        if self._embedded is None or self._embedded[0] is not images:
            self._embedded = images, self.encode(self.network, images, progress)
        return self._embedded[1]

    def copies(self, images: ImageSet, augnum: int = 5, progress: str | None = None) -> np.ndarray:
        """Return the embeddings of `augnum` augmented copies of M images, M×C×D.

        `augnum` 0: of the images themselves, C = 1.
        """
        if augnum == 0:
            return self.embed(images, progress)[:, None]
        views = SupportCopies(images, random_view(self.image_size, self.aug_plus), augnum)
        workers = self.workers if len(views) > MANY else 0  # starting them takes a second
        batches = ImageLoader(views, workers, batch_size=32)
        embeddings = encode_batches(self.network, batches, len(views), self.device, progress)
        return embeddings.reshape(len(images), augnum, -1)


# Classifies a task's images: (support set, query set) to probabilities, M×N, of the query set, and
# what results tell of them: "temperature", if they are calibrated. The support set is None for a
# classifier that is trained already.
Predictor = Callable[[ImageSet | None, ImageSet], tuple[np.ndarray, dict[str, float]]]


def by_id(images: ImageSet, values: np.ndarray) -> Callable[[ImageSet], np.ndarray]:
    """Return a function that gives the `values`, M×…, of some of the M `images`."""
    row_of = {i: row for row, i in enumerate(images.ids)}
    return lambda some: values[[row_of[i] for i in some.ids]]


def direct(encoder: FrozenEncoder, classifier: nn.Module, query: ImageSet) -> Predictor:
    """Encode the images of `query` once; return the predictor by a student's classifier f_c′."""
    embeddings = by_id(query, encoder.embed(query, progress="testing"))

    def predict(_: ImageSet | None, query: ImageSet) -> tuple[np.ndarray, dict[str, float]]:
        return classifier(torch.from_numpy(embeddings(query))).softmax(dim=1).numpy(), {}

    return predict


def regressions(
    encoder: FrozenEncoder,
    support: ImageSet,
    query: ImageSet,
    augnum: int = 5,
    normalize: bool = False,
    calibrate: bool = False,
) -> Predictor:
    """Encode the images of any number of tasks once; return their predictor.

    For a task's support and query set, of the images of `support` and `query`, it fits a logistic
    regression on `augnum` copies of the first and applies it to the second; if `calibrate`, with
    `support_temperature`.
    """
    copies = by_id(support, encoder.copies(support, augnum, progress="support copies"))
    plain = by_id(support, encoder.embed(support)) if calibrate else None
    embeddings = by_id(query, encoder.embed(query, progress="testing"))

    def predict(support: ImageSet | None, query: ImageSet) -> tuple[np.ndarray, dict[str, float]]:
        assert support is not None
        fitted = copies(support)
        f_c = fit_classifier(fitted, support.labels, normalize)
        probabilities = f_c.predict_proba(embeddings(query))
        if plain is None:
            return probabilities, {}
        temperature = support_temperature(fitted, plain(support), support.labels, normalize)
        return with_temperature(probabilities, temperature), {"temperature": temperature}

    return predict


def support_temperature(
    copies: np.ndarray, plain: np.ndarray, labels: Sequence[int], normalize: bool = False
) -> float:
    """Return the temperature of a support set's regression, by cross-validation within the set.

    K folds, K being the images of the smallest class: each is predicted by a regression on the
    others, and `best_temperature` taken of all predictions. copies: M×C×D, to fit; plain: M×D, to
    predict; labels: M. There must be two images of each class (`require_calibratable`).
    """
    truth = np.array(labels)
    predicted = np.zeros((len(truth), len(np.unique(truth))))
    for fitted, left_out in StratifiedKFold(np.bincount(truth).min()).split(plain, truth):
        f_c = fit_classifier(copies[fitted], truth[fitted], normalize)
        predicted[left_out] = f_c.predict_proba(plain[left_out])
    return best_temperature(predicted, truth)


def require_calibratable(task: Task) -> None:
    """Raise InputError if a class of a task has no second support image, to hold out."""
    if min((counts := task.support_counts()).values()) < 2:
        raise InputError(
            "--temperature cv holds out support images and needs at least 2 of each class, got "
            f"{counted(counts)}; --temperature none leaves the probabilities as they are"
        )


def note_on_counts(task: Task) -> None:
    """Print a note if the regression meets classes of unequal support: the shorter the embeddings,
    the stronger the L2 penalty, and the intercepts, which it spares, favour the larger classes."""
    if len(set((counts := task.support_counts()).values())) > 1:
        print(
            f"note: unequal numbers of support images ({counted(counts)}): the regression leans "
            "towards the larger classes, with --normalize most of all; equal numbers avoid it"
        )


def can_score_knn(labels: Sequence[int]) -> bool:
    """Return whether there are two classes, and two images of each."""
    counts = np.unique(labels, return_counts=True)[1]
    return bool(len(counts) > 1 and counts.min() > 1)


def knn_score(embeddings: np.ndarray, labels: Sequence[int]) -> dict[str, float]:
    """Return the accuracy of k-NN classification (20 neighbours, cosine), 5-fold cross-validated.

    `knn_accuracy`, and `knn_balanced`, the mean over classes, for labels that `can_score_knn`.
    """
    _, truth, counts = np.unique(labels, return_inverse=True, return_counts=True)
    folds = StratifiedKFold(min(5, counts.min()), shuffle=True, random_state=0)
    neighbours = min(NEIGHBOURS, len(truth) // 2)
    knn = KNeighborsClassifier(neighbours, metric="cosine", weights="distance")
    predicted = cross_val_predict(knn, embeddings, truth, cv=folds)
    return {
        "knn_accuracy": float(accuracy_score(truth, predicted)),
        "knn_balanced": float(balanced_accuracy_score(truth, predicted)),
    }
