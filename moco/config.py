"""The settings of the four scripts, a field a flag, in groups that the scripts share; and what a
stage says of itself."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import listed, refusing
from datasets.cache import default_folder
from models import BACKBONES, MIN_IMAGE_SIZE, build_encoder
from trainer.config import DROPS, EPOCHS, Device, Distributed, TrainingSettings
from trainer.settings import Settings, setting

__all__ = ["DROPS", "EPOCHS", "IMAGE_SIZE"]

IMAGE_SIZE = 224  # the papers'


@dataclass(frozen=True, kw_only=True)
class Classes(Settings):
    """your own images"""

    base_classes: list[str] | None = setting(
        None, "common diseases and normal controls", metavar="CLASS", fixed=True, inherited="always"
    )
    rare_classes: list[str] | None = setting(
        None, "rare diseases", metavar="CLASS", fixed=True, inherited="always"
    )


@dataclass(frozen=True, kw_only=True)
class Drawing(Settings):
    """stricter tasks, where one is drawn"""

    lesion_disjoint: bool = setting(
        False, "leave images of the support set's lesions out of the query set (ISIC 2018)"
    )
    rare_split: bool = setting(
        False, "draw the support set from 70 % of the rare images, and score on another 20 %, the "
        "same for every seed (the papers' comparison with an oracle)",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SkipUnreadable(Settings):
    """decoded images"""

    skip_unreadable: bool = setting(
        False, "go on without images that cannot be decoded, and say which; all stages of an "
        "experiment need it then",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cache(SkipUnreadable):
    """cache of decoded images"""

    cache: Path = setting(
        default_folder(), "folder where they are kept for later epochs and runs", metavar="DIR",
        runtime=True,
    )  # fmt: skip
    no_cache: bool = setting(False, "decode each image in every epoch", runtime=True)

    @property
    def cache_folder(self) -> Path | None:
        """The folder of the cache, unless there is to be none."""
        return None if self.no_cache else self.cache


@dataclass(frozen=True, kw_only=True)
class Backbone(Settings):
    """encoder"""

    arch: str = setting(
        "resnet12", "backbone", flags=("-a",), choices=tuple(BACKBONES), fixed=True,
        inherited="always",
    )  # fmt: skip
    image_size: int = setting(
        IMAGE_SIZE, "images are resized to this width and height", low=MIN_IMAGE_SIZE,
        metavar="PIXELS", fixed=True, inherited="always",
    )  # fmt: skip
    aug_plus: bool = setting(
        False, "MoCo v2's augmentation: hue and greyscale too", negatable=True, fixed=True,
        inherited="default",
    )  # fmt: skip
    views_by: Literal["batch", "pil"] = setting(
        None, "how random views are made: of a batch at once, on the device, from the cache of "
        "decoded images; or one at a time by PIL, in -j processes", flags=("--views",), fixed=True,
        auto="the former on a GPU",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Contrast(Settings):
    """contrast"""

    moco_dim: int = setting(
        None, "width of the embedding", low=1, metavar="D", fixed=True, inherited="always",
        auto="128; conv4_released: 64",
    )  # fmt: skip
    moco_k: int = setting(
        1280, "queue size: number of negative keys", low=1, metavar="L", fixed=True,
        inherited="default",
    )  # fmt: skip
    moco_m: float = setting(
        0.999, "momentum of the key encoder", low=0, high=1, metavar="M", fixed=True,
        inherited="default",
    )  # fmt: skip
    moco_t: float = setting(
        0.07, "softmax temperature", low=1e-6, metavar="T", fixed=True, inherited="default"
    )
    mlp: bool = setting(
        False, "MoCo v2's hidden layer", negatable=True, fixed=True, inherited="always"
    )
    bn_groups: int = setting(
        4, "parts of the total batch that BatchNorm treats apart, as that many GPUs would; with "
        "more processes than this, each is a part", low=1, metavar="N", fixed=True,
        inherited="default",
    )  # fmt: skip

    def encoder_pair(self, arch: str) -> dict:
        """Return what `builder.MoCo` takes."""
        return {
            "make_encoder": functools.partial(build_encoder, arch, self.moco_dim, self.mlp),
            "embedding_dim": self.moco_dim,
            "queue_size": self.moco_k,
            "encoder_momentum": self.moco_m,
            "temperature": self.moco_t,
        }


@dataclass(frozen=True, kw_only=True)
class Encoding(Cache, Device):
    """encoding"""

    batch_size: int = setting(
        32, "images encoded at a time", flags=("-b",), low=1, metavar="N", runtime=True
    )
    amp: bool = setting(
        None, "mixed precision: the encoders compute in bfloat16 where that is safe, the rest in "
        "32 bits", negatable=True, auto="on a GPU that has it", runtime=True,
    )  # fmt: skip
    overwrite: bool = setting(False, "write over what is there", runtime=True)


@dataclass(frozen=True, kw_only=True)
class Regression(Settings):
    """the classifier that is fitted on the support set"""

    augnum: int = setting(
        5, "augmented copies of each support image to fit on; 0: the image itself", low=0,
        metavar="N",
    )  # fmt: skip
    normalize: bool = setting(
        False, "fit the logistic regression on L2-normalised embeddings, as Tian et al. 2020"
    )


@dataclass(frozen=True, kw_only=True)
class ImageTraining(Classes, TrainingSettings, Backbone, Cache, Device):
    """What `moco.train` reads: a training on random views of images."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveTraining(ImageTraining, Contrast, Cache, Distributed):
    """One by momentum contrast. It names the cache again to have it behind contrast in the help."""


@dataclass(frozen=True, kw_only=True)
class Pretraining(ContrastiveTraining):
    """main_moco.py"""

    description = "Stage (a): learn an encoder from the base images, without labels."

    data: Path = setting(help="data folder", positional=True, metavar="DATA")


@dataclass(frozen=True, kw_only=True)
class Labelling(Classes, Regression, Drawing, Encoding):
    """generate_pseudo.py"""

    description = (
        "Stages (b) and (c): draw a task, fit a classifier on its support set, and let it label "
        "the base images."
    )
    inherits = "stage (a)"

    datadir: Path = setting(help="data folder", metavar="DATA")
    resume: Path = setting(help="stage (a)'s checkpoint, or its folder", metavar="PATH")
    savedir: Path = setting(help="folder for the task and the pseudo labels", metavar="DIR")
    arch: str | None = setting(
        None, "backbone; an error if the checkpoint's is another", flags=("-a",),
        choices=tuple(BACKBONES), inherited="always",
    )  # fmt: skip
    n_way: int | None = setting(
        None, "rare classes in the task, drawn if fewer than the data has (default: all)", low=1, metavar="N",
    )  # fmt: skip
    k_shot: int = setting(5, "support images of each rare class", low=1, metavar="K")
    k_query: int = setting(
        15, "say so if a class keeps fewer query images than this; the query set is always all the "
        "rest", low=0, metavar="Q",
    )  # fmt: skip
    seed: int = setting(0, "of the task and the augmented copies", low=0)


@dataclass(frozen=True, kw_only=True)
class Correction(Settings):
    """correction of class imbalance"""

    correction: Literal["none", "dic", "ddl"] = setting(
        "none", "by the classes' dispersion, eqs. (6)-(9), or by how many pseudo labels each has",
        fixed=True,
    )  # fmt: skip
    dic_gamma: float = setting(
        0.1, "how far the corrected temperatures may be apart", low=0, high=1, metavar="G",
        fixed=True,
    )  # fmt: skip
    dic_scale: float = setting(
        1.0, "factor on each class's share in eq. (7); the authors' code has the number of "
        "classes, which spreads the temperatures that much further", low=1e-6, metavar="F",
        fixed=True,
    )  # fmt: skip
    dic_interval: int = setting(
        10, "epochs between measurements of the dispersions; before the first, nothing is "
        "corrected", low=1, metavar="EPOCHS", fixed=True,
    )  # fmt: skip
    dic_dispersion: Literal["normalized", "norm", "raw"] = setting(
        "normalized", "variance of the normalised embeddings, of their lengths, or of the "
        "embeddings as they are", fixed=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Distillation(Correction, ContrastiveTraining):
    """main_distill.py"""

    description = "Stage (d): distil a student from base images and their pseudo labels."
    inherits = "the teacher"

    data: Path = setting(help="data folder", positional=True, metavar="DATA")
    savedir: Path = setting(
        help="generate_pseudo.py's folder: the task and the pseudo labels", metavar="DIR"
    )
    p_label: bool = setting(
        True, "learn from the pseudo labels; without, from contrast alone, as a control", negatable=True, fixed=True,
    )  # fmt: skip
    pseudo_label: Literal["adaptive-hard", "adaptive-soft", "hard", "soft"] = setting(
        "adaptive-hard", "hard: the teacher's first choice, eq. (3); soft: its probabilities, "
        "eq. (4); adaptive: mixed with the student's own view, eq. (5)", fixed=True,
    )  # fmt: skip
    alpha: float = setting(
        0.7, "weight of the student's own view in the labels at the end, eq. (5)", low=0, high=1,
        metavar="A", fixed=True,
    )  # fmt: skip
    losses: Literal["con+cls", "cls", "con+reg"] = setting(
        "con+cls", "what is added up: contrast, classification by pseudo labels, regression of "
        "the teacher's embeddings", fixed=True,
    )  # fmt: skip
    cls_loss: Literal["paper", "released"] = setting(
        "paper", "classification loss: the papers', or that of the authors' code, which has one "
        "form with a --correction and one without", fixed=True,
    )  # fmt: skip
    n_way: int | None = setting(
        None, "rare classes; an error if the task's number is another", low=1,
        metavar="N",
    )  # fmt: skip
    k_shot: int | None = setting(
        None, "support images a class; an error if the task's number is another", low=1, metavar="K",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Testing(Classes, Regression, Drawing, Encoding):
    """test.py"""

    description = "Score an encoder or a student on all rare images but the support set."
    inherits = "the checkpoint"

    data: Path | None = setting(
        None, "data folder; not needed for --predict with --load_cla", positional=True,
        metavar="DATA",
    )  # fmt: skip
    resume: Path = setting(help="checkpoint of stage (a) or (d), or its folder", metavar="PATH")
    arch: str | None = setting(
        None, "backbone; an error if the checkpoint's is another", flags=("-a",),
        choices=tuple(BACKBONES), inherited="always",
    )  # fmt: skip
    load_cla: bool = setting(
        False, "use the student's own classifier; without, a logistic regression is fitted on the "
        "support set",
    )  # fmt: skip
    predict: Path | None = setting(
        None, "say what the images in this folder are, instead of scoring; they need no labels",
        metavar="FOLDER",
    )  # fmt: skip
    savedir: Path | None = setting(
        None, "take the task from generate_pseudo.py's folder (a student knows its own)",
        metavar="DIR",
    )  # fmt: skip
    n_way: int | None = setting(
        None, "rare classes of the task to draw (default: all); an error if the task has another "
        "number", low=1, metavar="N",
    )  # fmt: skip
    k_shot: int | None = setting(
        None, "support images a class of the task to draw (default: 5); an error if the task has "
        "another number", low=1, metavar="K",
    )  # fmt: skip
    seed: int | None = setting(
        None, "of the task to draw (default: 0); an error if the task is of another", low=0,
        metavar="SEED",
    )  # fmt: skip
    output: Path | None = setting(
        None, "folder for the scores (default: the checkpoint's)", metavar="DIR"
    )


def inherited_from(args: Mapping[str, Any], settings: Labelling) -> dict[str, Any]:
    """Return what a student inherits of its teacher, whose settings are `args`: the classes as they
    were named for the labelling, where stage (a) named none."""
    inherited = {name for name, field in Distillation.fields().items() if field.about.inherited}
    classes = {"base_classes": settings.base_classes, "rare_classes": settings.rare_classes}
    return {name: args.get(name) for name in sorted(inherited)} | classes


def teacher_settings(recorded: Mapping[str, Any], savedir: Path) -> dict[str, Any]:
    """Return the settings of the teacher whose pseudo labels are in `savedir`, as they are
    `recorded` there; what is newer than the file has its default.

    Raises InputError if one is missing that decides what a student is, or is none that there is.
    """
    with refusing(f"the teacher of the pseudo labels in {savedir} is invalid"):
        fields = Pretraining.fields()
        needed = [
            name for name in Pretraining.names(inherited="always") if not fields[name].optional
        ]
        if missing := [name for name in needed if recorded.get(name) is None]:
            raise ValueError(f"missing setting {listed(missing)}")
        return Pretraining.complete(recorded)


@dataclass(frozen=True)
class Stage:
    """A training that leaves checkpoints: what it is called in them and for people, its settings,
    and whether it trains a classifier of a task.

    `untrained(args)` says what of a run's settings means that the classifier was not trained, or
    None; for a stage without a classifier of a task that is what it is.
    """

    name: str
    title: str
    settings: type[Settings]
    classifies: bool = False
    untrained: Callable[[dict], str | None] = lambda args: None


STAGES: dict[str, Stage] = {}


def register(*stages: Stage) -> None:
    """Make stages known, so that their checkpoints can be read."""
    STAGES.update({stage.name: stage for stage in stages})


def _untrained(args: dict) -> str | None:
    if not args["p_label"]:
        return "a student trained with --no-p_label"
    return None if "cls" in args["losses"] else f"a student trained with --losses {args['losses']}"


register(
    Stage("moco", "stage (a), main_moco.py", Pretraining),
    Stage("distill", "stage (d), main_distill.py", Distillation, True, _untrained),
)
