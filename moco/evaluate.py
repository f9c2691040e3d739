"""Encode images, fit f_c on a support set, and score predictions."""

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets.cache import pixels
from datasets.images import ImageSet, TransformedImages

from .augment import RandomViews, plain_view, random_view
from .views import as_values

NEIGHBOURS = 20


def encode(
    encoder: nn.Module,
    images: ImageSet,
    image_size: int,
    batch_size: int = 32,
    workers: int = 0,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> np.ndarray:
    """Embeddings of the evaluation view of `images` in evaluation mode, N×D, not normalised; one
    pass, in order.

    Images that are `cached` at this size come straight from there, others from `workers` processes.
    `progress` names a progress bar. The encoder's mode is left as it was.
    """
    stored = pixels(images)
    if stored is not None and stored.shape[1] == image_size:
        parts = range(0, len(images), batch_size)
        batches = (torch.from_numpy(stored[i : i + batch_size]) for i in parts)
    else:
        views = TransformedImages(images, plain_view(image_size))
        batches = DataLoader(views, batch_size, num_workers=workers)
    hidden = None if progress else True  # None: where it would go to a file
    with tqdm(total=len(images), desc=progress, unit="img", disable=hidden) as bar:
        return encode_batches(encoder, batches, device, bar)


@torch.no_grad()
def encode_batches(
    encoder: nn.Module, batches: Iterable[Tensor], device: torch.device | str, bar: tqdm
) -> np.ndarray:
    """`encode` of `batches`: of views, B×3×S×S with values 0–1, or of pixels, B×S×S×3, 8 bits."""
    was_training = encoder.training
    encoder.eval()
    embeddings = []
    for images in batches:
        images = images.to(device)
        images = as_values(images) if images.dtype == torch.uint8 else images
        embeddings.append(encoder(images).cpu())
        bar.update(len(images))
    encoder.train(was_training)
    return torch.cat(embeddings).numpy()


def fit_classifier(embeddings: np.ndarray, labels: np.ndarray, normalize: bool = False) -> Pipeline:
    """Fit f_c: logistic regression with scikit-learn's default C, on embeddings as they are or, as
    Tian et al. 2020 have it, L2-normalised (`normalize`).

    In 64 bits, until it has converged: of a fit that stops early, or computes in 32 bits, a
    difference of 1e-6 in the embeddings moves probabilities by 4e-3.
    """
    steps = [Normalizer()] if normalize else []
    f_c = make_pipeline(*steps, LogisticRegression(solver="newton-cg", tol=1e-8, max_iter=1000))
    return f_c.fit(embeddings.astype(np.float64), labels)


def fit_on_support(
    encoder: nn.Module,
    support: ImageSet,
    *,
    image_size: int,
    aug_plus: bool,
    augnum: int,
    seed: int,
    normalize: bool = False,
    device: torch.device | str = "cpu",
) -> Pipeline:
    """Stage (b): f_c fitted on `augnum` augmented copies of each support image (0: on the images
    as they are), encoded by the frozen f_q."""
    if augnum == 0:
        embeddings = encode(encoder, support, image_size, device=device)
    else:
        copies = DataLoader(_Copies(support, image_size, aug_plus, augnum, seed), batch_size=32)
        embeddings = encode_batches(encoder, copies, device, tqdm(disable=True))
    labels = np.repeat(support.labels, max(augnum, 1))
    return fit_classifier(embeddings, labels, normalize)


class _Copies(Dataset):
    """Row i: one augmented view of image i // `copies`; its random stream is the copy's number."""

    def __init__(self, images: ImageSet, image_size: int, aug_plus: bool, copies: int, seed: int):
        view = random_view(image_size, aug_plus)
        self.views = RandomViews(images, view, views=1, seed=seed, purpose="support copies")
        self.copies = copies

    def __len__(self) -> int:
        return len(self.views) * self.copies

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.views[row % self.copies, row // self.copies][0][0]


def knn_score(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well an image's class is told by its 20 nearest neighbours (cosine), in 5-fold
    cross-validation: `knn_accuracy`, and `knn_balanced`, the mean over classes. Empty where a
    class has fewer than two images.
    """
    _, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    fewest = counts.min()
    if fewest < 2:
        return {}
    folds = StratifiedKFold(min(5, fewest), shuffle=True, random_state=0)
    neighbours = min(NEIGHBOURS, len(labels) // 2)
    knn = KNeighborsClassifier(neighbours, metric="cosine", weights="distance")
    scores = score(labels, cross_val_predict(knn, embeddings, labels, cv=folds))
    return {"knn_accuracy": scores["accuracy"], "knn_balanced": scores["average"]}


def score(truth: np.ndarray, predicted: np.ndarray, classes: tuple[str, ...] | None = None) -> dict:
    """Total accuracy, each class's (A_1…A_N), their mean, macro F1, and the confusion matrix.

    All fractions; `confusion[i][j]` counts images of class i taken for class j.
    """
    classes = classes or tuple(str(label) for label in np.unique(truth))
    labels = list(range(len(classes)))
    confusion = confusion_matrix(truth, predicted, labels=labels)
    per_class = confusion.diagonal() / confusion.sum(axis=1)
    return {
        "accuracy": float(confusion.trace() / confusion.sum()),
        "per_class": dict(zip(classes, per_class.tolist())),
        "average": float(per_class.mean()),
        "macro_f1": float(f1_score(truth, predicted, average="macro", labels=labels)),
        "confusion": confusion.tolist(),
    }


def score_table(scores: dict) -> str:
    """`score`'s result for the screen: a row a class, true class down, prediction across."""
    names = list(scores["per_class"])
    width = max(len(name) for name in (*names, "mean of classes"))
    cell = max(len(name) for name in (*names, "accuracy")) + 2
    lines = [
        f"{'':{width}}{'images':>8}{'accuracy':>10}  taken for"
        + "".join(f"{n:>{cell}}" for n in names)
    ]
    for name, row in zip(names, scores["confusion"]):
        taken = "".join(f"{count:>{cell}}" for count in row)
        lines.append(f"{name:{width}}{sum(row):>8}{scores['per_class'][name]:>10.1%}{'':11}{taken}")
    total = sum(map(sum, scores["confusion"]))
    lines.append(f"{'total':{width}}{total:>8}{scores['accuracy']:>10.1%}")
    lines.append(f"{'mean of classes':{width}}{'':8}{scores['average']:>10.1%}")
    lines.append(f"{'macro F1':{width}}{'':8}{scores['macro_f1']:>10.1%}")
    return "\n".join(lines)


def predictions_csv(
    images: ImageSet, probabilities: np.ndarray, classes: Sequence[str], truth: bool = True
) -> str:
    """A line an image: id, truth (unless unknown), prediction, each class's probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    told = ["truth"] if truth else []
    writer.writerow(["image", *told, "prediction", *(f"p_{name}" for name in classes)])
    for name, label, row in zip(images.ids, images.labels, probabilities):
        told = [images.classes[label]] if truth else []
        writer.writerow([name, *told, classes[row.argmax()], *(f"{p:.6f}" for p in row)])
    return text.getvalue()
