"""Settings of the four scripts, one field per flag, in shared groups; and the table of stages."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from common.errors import InputError, listed
from datasets import Collection
from datasets.cache import DEFAULT as CACHE
from datasets.images import ImageSet
from datasets.open import decoded, open_data
from models import (
    ARCHITECTURES,
    MIN_IMAGE_SIZE,
    build_encoder,
    default_embedding_dim,
    embedding_width,
)
from trainer.config import Device, Distributed, TrainingSettings
from trainer.settings import Settings, binding, recipe, setting

IMAGE_SIZE = 224  # as in the papers
# Of a training that starts from pretrained weights: what the authors' scripts of MoCo-CXR
# (Sowrirajan et al. 2021) use to continue ImageNet weights by MoCo, with batches of 16, too: a
# constant rate, as its drops come after the last epoch. BatchNorm keeps its statistics, usual in
# fine-tuning with few images a batch (He et al. 2016, ResNet, appendix A): those of four are far
# from what the weights were trained with.
FROM_WEIGHTS: dict[str, Any] = {"epochs": 20, "lr": 1e-4, "schedule": [], "bn_groups": 0}


def data_folder(default: Any = MISSING, help: str = "data folder", **options: Any) -> Any:
    """Describe a script's data folder: DATA, or --datadir DATA."""
    flags = ("--datadir",)
    return setting(default, help, flags=flags, positional=True, metavar="DATA", **options)


@dataclass(frozen=True, kw_only=True)
class Classes(Settings):
    """your own images"""

    # Neither binds a later stage nor a resumed run: what they read is compared, images and task.
    base_classes: list[str] | None = setting(
        None, "common diseases and normal controls", inherited="default", metavar="CLASS", name=True,
    )  # fmt: skip
    rare_classes: list[str] | None = setting(
        None, "rare diseases; a class in neither is not used", inherited="default",
        metavar="CLASS", name=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Drawing(Settings):
    """how a task is drawn"""

    group_disjoint: bool = setting(
        False, "exclude images of the support set's groups (patients, lesions) from the query set",
        flags=("--group-disjoint", "--lesion-disjoint"), former="lesion_disjoint",
    )  # fmt: skip
    groups: Path | None = setting(
        None, "CSV file with the columns image (or path) and group: of each image id, its patient "
        "or lesion", metavar="FILE",
    )  # fmt: skip
    group_column: str | None = setting(
        None, "column of groups, in --groups or in the CSV file of images (default: group)",
        metavar="NAME", name=True,
    )  # fmt: skip
    group_folders: bool = setting(
        False, "take the folders within the class folders as groups, one a patient",
    )  # fmt: skip
    rare_split: bool = setting(
        False, "draw the support set from 70 % of the rare images and score on another 20 %, the "
        "same for all seeds (the papers' comparison with an oracle)",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Choosing(Drawing):
    """the task"""

    support: Path | None = setting(
        None, "CSV file of the support images, chosen instead of drawn, with the columns "
        "image,label: ids or paths; with a column support, only the rows marked in it",
        metavar="FILE",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reading(Settings):
    """reading the data"""

    skip_unreadable: bool = setting(
        False, "leave out images that cannot be decoded, and list them; use it in all stages of "
        "an experiment",
    )  # fmt: skip
    allow_duplicates: bool = setting(
        False, "count copies of an image as separate images, also those in two classes",
        negatable=True, inherited="default",
    )  # fmt: skip
    quiet: bool = setting(False, "one line on what the data folder holds", runtime=True)

    def open_data(self, **options: Any) -> Collection:
        """Open the data folder by `datasets.open.open_data`, with the settings and `options`."""
        names = [name for name in inspect.signature(open_data).parameters if hasattr(self, name)]
        return open_data(**{name: getattr(self, name) for name in names}, **options)


@dataclass(frozen=True, kw_only=True)
class Cache(Reading):
    """cache of decoded images"""

    cache: Path = setting(
        CACHE, "cache folder, shared by epochs and runs", metavar="DIR", runtime=True,
    )  # fmt: skip
    no_cache: bool = setting(False, "decode each image in every epoch", runtime=True)

    @property
    def cache_folder(self) -> Path | None:
        """The cache folder, or None with --no-cache."""
        return None if self.no_cache else self.cache

    def decoded(self, images: ImageSet, size: int, required: bool = False) -> ImageSet:
        """Return `images`, decoded to S×S, by `datasets.open.decoded`."""
        return decoded(images, size, self.cache_folder, required, self.quiet)


@dataclass(frozen=True, kw_only=True)
class Backbone(Settings):
    """encoder"""

    arch: str = binding("resnet12", "backbone", flags=("-a",), choices=ARCHITECTURES)
    image_size: int = binding(
        IMAGE_SIZE, "width and height to which images are resized", low=MIN_IMAGE_SIZE,
        metavar="PIXELS",
    )  # fmt: skip
    weights: str = recipe(
        "none", "initial weights of the backbone: none, random; default, those that torchvision or "
        "timm publishes; FILE, a state dict of the network (.pth, .safetensors); RUN, the folder "
        f"of a run. With weights, --epochs is {FROM_WEIGHTS['epochs']}, --lr "
        f"{FROM_WEIGHTS['lr']} and --schedule empty by default", metavar="{none,default,FILE,RUN}",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Views(Settings):
    """random views"""

    aug_plus: bool = recipe(False, "MoCo v2's augmentation: also hue and greyscale", negatable=True)
    views_by: Literal["batch", "pil"] = setting(
        None, "how random views are computed: batch, a batch at once on the device, from the "
        "cache of decoded images; pil, one by one in -j processes", flags=("--views",),
        fixed=True, auto="batch on a GPU with the cache, else pil",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Contrast(Settings):
    """contrast"""

    moco_dim: int = recipe(
        None, "embedding dimension; 0: the backbone's features are the embedding", low=0,
        metavar="D", auto="128; conv4_released: 64",
    )  # fmt: skip
    moco_k: int = recipe(1280, "queue size: number of negative keys", low=1, metavar="L")
    moco_m: float = recipe(0.999, "momentum of the key encoder", low=0, high=1, metavar="M")
    moco_t: float = recipe(0.07, "softmax temperature", low=1e-6, metavar="T")
    mlp: bool = binding(False, "MoCo v2's projection head, with a hidden layer", negatable=True)
    bn_groups: int = recipe(
        4, "parts into which BatchNorm splits the total batch, as on that many GPUs; at least "
        "one per process; 0: it keeps the statistics of --weights, the default with them", low=0,
        metavar="N",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Encoding(Cache, Device):
    """encoding"""

    arch: str | None = setting(
        None, "backbone; must match the checkpoint", flags=("-a",), choices=ARCHITECTURES,
        inherited="always",
    )  # fmt: skip
    batch_size: int = setting(
        32, "images encoded per batch", flags=("-b",), low=1, metavar="N", runtime=True,
    )  # fmt: skip
    amp: bool = setting(
        None, "mixed precision: encoders compute in bfloat16 where safe, all else in float32",
        negatable=True, auto="on GPUs with bfloat16", runtime=True,
    )  # fmt: skip
    norm_statistics: Literal["running", "image"] = setting(
        "running", "statistics of BatchNorm: those of the training, or each image's own, as those "
        "of the authors' 4-conv-block, which tests one image at a time",
    )  # fmt: skip
    overwrite: bool = setting(False, "overwrite existing results", runtime=True)


@dataclass(frozen=True, kw_only=True)
class Regression(Settings):
    """logistic regression on the support set"""

    augnum: int = setting(
        None, "augmented copies of each support image to fit; 0: the image itself", low=0,
        metavar="N", auto="5; 0 for a frozen pretrained encoder",
    )  # fmt: skip
    normalize: bool = setting(False, "fit on L2-normalised embeddings, as in Tian et al. 2020")


@dataclass(frozen=True, kw_only=True)
class ImageTraining(Classes, TrainingSettings, Backbone, Views, Cache, Device):
    """Settings of `moco.train`: training on random views of images."""

    @classmethod
    def defaults_for(cls, arch: str) -> dict[str, Any]:
        """Return the defaults that depend on the backbone."""
        return {"moco_dim": default_embedding_dim(arch)}


@dataclass(frozen=True, kw_only=True)
class ContrastiveTraining(ImageTraining, Contrast, Cache, Distributed):
    """Training by momentum contrast. `Cache` is repeated to follow contrast in the help."""

    def encoder_pair(self) -> dict:
        """Return the arguments of `builder.MoCo`."""
        network = self.arch, self.moco_dim, self.mlp, self.image_size
        return {
            "make_encoder": functools.partial(build_encoder, *network),
            "embedding_dim": embedding_width(self.arch, self.moco_dim, self.image_size),
            "queue_size": self.moco_k,
            "encoder_momentum": self.moco_m,
            "temperature": self.moco_t,
        }


@dataclass(frozen=True, kw_only=True)
class Pretraining(ContrastiveTraining):
    """main_moco.py"""

    description = "Stage (a): learn an encoder from the base images, without labels."

    data: Path = data_folder()


@dataclass(frozen=True, kw_only=True)
class Labelling(Classes, Regression, Choosing, Encoding):
    """generate_pseudo.py"""

    description = (
        "Stages (b) and (c): draw a task, fit a classifier on its support set, and label the base "
        "images with it."
    )
    inherits = "stage (a)"

    data: Path = data_folder(former="datadir")
    resume: Path = setting(help="stage (a)'s checkpoint, or its folder", metavar="PATH")
    savedir: Path = setting(help="folder for the task and the pseudo labels", metavar="DIR")
    n_way: int | None = setting(
        None, "rare classes in the task, drawn at random (default: all)", low=1, metavar="N",
    )  # fmt: skip
    k_shot: int = setting(5, "support images per rare class", low=1, metavar="K")
    k_query: int = setting(
        15, "warn if a class has fewer query images; the query set is always all remaining images",
        low=0, metavar="Q",
    )  # fmt: skip
    seed: int = setting(0, "seed of the task", low=0)


@dataclass(frozen=True, kw_only=True)
class Correction(Settings):
    """correction of class imbalance"""

    correction: Literal["none", "dic", "ddl"] = setting(
        "none", "dic: by the classes' dispersions, eqs. (6)-(9); ddl: by their numbers of pseudo "
        "labels", fixed=True,
    )  # fmt: skip
    pseudo_balance: Literal["none", "align"] = setting(
        "none", "align: pseudo labels divided by their mean over the base images (distribution "
        "alignment), for a student whose classifier begins anew from a teacher that calls nearly all "
        "of them one class; not in the papers", fixed=True,
    )  # fmt: skip
    dic_gamma: float = setting(
        0.1, "gamma of eqs. (6)-(9): limits the spread of the class temperatures", low=0, high=1,
        metavar="G", fixed=True,
    )  # fmt: skip
    dic_scale: float = setting(
        1.0, "factor on each class's share in eq. (7); the authors' code uses the number of "
        "classes, which spreads the temperatures more by that factor", low=1e-6, metavar="F",
        fixed=True,
    )  # fmt: skip
    dic_interval: int = setting(
        10, "epochs between measurements of the dispersions; no correction before the first",
        low=1, metavar="EPOCHS", fixed=True,
    )  # fmt: skip
    dic_dispersion: Literal["normalized", "norm", "raw"] = setting(
        "normalized", "variance of the L2-normalised embeddings, of their norms, or of the raw "
        "embeddings", fixed=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Distillation(Correction, ContrastiveTraining):
    """main_distill.py"""

    description = "Stage (d): distil a student from base images and their pseudo labels."
    inherits = "the teacher"

    data: Path = data_folder()
    savedir: Path = setting(
        help="generate_pseudo.py's folder: the task and the pseudo labels", metavar="DIR",
    )  # fmt: skip
    student_weights: Literal["teacher-init", "teacher", "fresh"] = setting(
        None, "teacher-init: the pretrained weights that the teacher began with; teacher: its encoder "
        "as it labelled, for --moco-dim 0; fresh: random",
        auto="teacher-init if the teacher began with pretrained weights", fixed=True,
    )  # fmt: skip
    student_classifier: Literal["teacher", "fresh"] = setting(
        None, "teacher: the student's classifier begins as the teacher's f_c; fresh: random, as in "
        "the papers", auto="teacher if the student begins with its teacher's very encoder, else "
        "fresh", fixed=True,
    )  # fmt: skip
    p_label: bool = setting(
        True, "use the pseudo labels; without them, contrast only, as a control", negatable=True,
        fixed=True,
    )  # fmt: skip
    pseudo_label: Literal["adaptive-hard", "adaptive-soft", "hard", "soft"] = setting(
        "adaptive-hard", "hard: the class that the teacher predicts, eq. (3); soft: its "
        "probabilities, eq. (4); adaptive: mixed with the student's prediction, eq. (5)",
        fixed=True,
    )  # fmt: skip
    alpha: float = setting(
        0.7, "adaptive labels, eq. (5): the student's prediction weighs A·t/T after t of T epochs", low=0,
        high=1, metavar="A", fixed=True,
    )  # fmt: skip
    losses: Literal["con+cls", "cls", "con+reg"] = setting(
        "con+cls", "terms of the loss: contrast, classification by pseudo labels, regression of "
        "the teacher's embeddings", fixed=True,
    )  # fmt: skip
    cls_loss: Literal["paper", "released"] = setting(
        "paper", "classification loss: the papers', or that of the authors' code, which differs "
        "with and without --correction", fixed=True,
    )  # fmt: skip
    n_way: int | None = setting(None, "rare classes; must match the task", low=1, metavar="N")
    k_shot: int | None = setting(
        None, "support images per class; must match the task", low=1, metavar="K",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Testing(Classes, Regression, Choosing, Encoding):
    """test.py"""

    description = "Score an encoder or a student on all rare images except the support set."
    inherits = "the checkpoint"

    data: Path | None = data_folder(None, "data folder; not needed for --predict with --load-cla")
    resume: Path = setting(
        help="checkpoint of stage (a) or (d) or a baseline, or its folder", metavar="PATH"
    )
    load_cla: bool = setting(
        False, "use the student's classifier instead of a logistic regression fitted on the "
        "support set",
    )  # fmt: skip
    predict: list[Path] | None = setting(
        None, "classify unlabelled images instead of scoring: a folder, image files, or a CSV file "
        "with the column path", metavar="PATH",
    )  # fmt: skip
    none_of_these: bool = setting(
        True, "with --predict: say how much an image looks like no rare class, compared with the "
        "base images of the data folder, once; later without it", negatable=True, runtime=True,
    )  # fmt: skip
    none_level: float = setting(
        0.05, "share of the base images that may pass for rare; above it an image is none of these",
        low=0, high=1, metavar="P", runtime=True,
    )  # fmt: skip
    sheet: Path | None = setting(
        None, "with --predict: also write a page of thumbnails by verdict", metavar="HTML",
        runtime=True,
    )  # fmt: skip
    teacher: bool = setting(
        True, "beside a student's scores, show its teacher's, those of its own classifier, and of a "
        "logistic regression on its features", negatable=True, runtime=True,
    )  # fmt: skip
    temperature: Literal["none", "cv"] = setting(
        "none", "calibrate the probabilities of the logistic regression: cv, by a temperature from "
        "cross-validation within the support set, for 2 or more images of each class",
    )  # fmt: skip
    savedir: Path | None = setting(
        None, "generate_pseudo.py's folder, to use its task (default: a student's own task)",
        metavar="DIR",
    )  # fmt: skip
    n_way: int | None = setting(
        None, "rare classes of a drawn task (default: all); must match an existing task", low=1,
        metavar="N",
    )  # fmt: skip
    k_shot: int | None = setting(
        None, "support images per class of a drawn task (default: 5); must match an existing task",
        low=1, metavar="K",
    )  # fmt: skip
    seed: int | None = setting(
        None, "seed of a drawn task (default: 0); must match an existing task", low=0,
        metavar="SEED",
    )  # fmt: skip
    tasks: int | None = setting(
        None, "score an encoder on the tasks of seeds 0 to N-1: mean and 95 % confidence interval",
        low=2, metavar="N",
    )  # fmt: skip
    compare: Path | None = setting(
        None, "with --tasks: the CSV file of another encoder on the same tasks, for the paired "
        "difference and Wilcoxon's test", metavar="CSV", runtime=True,
    )  # fmt: skip
    output: Path | None = setting(
        None, "folder for the scores (default: the checkpoint's)", metavar="DIR",
    )  # fmt: skip


def require_undrawn(given: Mapping[str, Any]) -> None:
    """Raise InputError if a command that chooses its task has flags that draw one."""
    if drawing := [name for name in ("n_way", "k_shot", "seed", "rare_split") if name in given]:
        flags = listed(f"--{name.replace('_', '-')}" for name in drawing)
        raise InputError(f"--support chooses the task, which then is not drawn; leave out {flags}")


@dataclass(frozen=True)
class Stage:
    """A kind of training with checkpoints.

    `name` identifies it in checkpoints, `title` in messages. `classifies`: it has a classifier of a
    task. `untrained(args)` describes a run whose settings left that classifier untrained; None if
    it was trained. `trained`: its encoder was trained on images here. `augnum`: the augmented
    copies on which a regression on its embeddings is fitted by default. `adapts`: the model of a
    meta-learning method, which adapts to a task by itself: see `meta.MetaLearner`.
    """

    name: str
    title: str
    settings: type[Settings]
    classifies: bool = False
    untrained: Callable[[dict], str | None] = lambda args: None
    trained: bool = True
    augnum: int = 5
    adapts: type[nn.Module] | None = None

    def model(self, args: Mapping[str, Any]) -> nn.Module:
        """Build the model that `adapts`, with fresh weights; its parameters are settings' names."""
        assert self.adapts, self.name
        return self.adapts(
            **{name: args[name] for name in inspect.signature(self.adapts).parameters}
        )


STAGES: dict[str, Stage] = {}
TEACHERS = ("moco", "pretrained")  # whose encoders label the base images


def register(*stages: Stage) -> None:
    """Register stages, so that their checkpoints can be read."""
    STAGES.update({stage.name: stage for stage in stages})


def _untrained(args: dict) -> str | None:
    if not args["p_label"]:
        return "a student trained with --no-p-label"
    return None if "cls" in args["losses"] else f"a student trained with --losses {args['losses']}"


register(
    Stage("moco", "stage (a), main_moco.py", Pretraining),
    Stage("distill", "stage (d), main_distill.py", Distillation, True, _untrained),
)
