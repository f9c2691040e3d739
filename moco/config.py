"""The command line: each script's flags, in groups that the scripts share."""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

from datasets.cache import default_folder
from datasets.open import CLASSES
from models import BACKBONES, MIN_IMAGE_SIZE, build_encoder
from trainer.cli import ArgumentParser, natural, number, positive
from trainer.distributed import readers
from trainer.launch_plan import Plan, plan

EPOCHS, DROPS, IMAGE_SIZE = 200, (120, 160), 224  # the papers'; drops of the learning rate
# What a run may not change when it is resumed; the rest (epochs, workers, …) may.
FIXED = (
    "arch", "image_size", "moco_dim", "moco_k", "moco_m", "moco_t", "mlp", "aug_plus", "bn_groups",
    "batch_size", "lr", "schedule", "cos", "momentum", "wd", "amp", "views_by", "seed", "p_label",
    "pseudo_label", "alpha", "losses", "cls_loss", "correction", "dic_gamma", "dic_scale",
    "dic_interval", "dic_dispersion", "simclr_t", "teacher", "distill_t", "distill_weight",
    "base_classes", "rare_classes",
)  # fmt: skip
OF_THE_MACHINE = (
    "device", "gpu", "workers", "batch_size", "amp", "cache", "no_cache", "overwrite",
)  # fmt: skip
# What a student takes over from its teacher where it is not told otherwise; the first few it must.
BORN_WITH = ("arch", "image_size", "moco_dim", "mlp", *CLASSES)
INHERITED = (
    *BORN_WITH, "moco_k", "moco_m", "moco_t", "aug_plus", "bn_groups",
    "epochs", "batch_size", "lr", "schedule", "cos", "momentum", "wd", "amp",
)  # fmt: skip


# fmt: off
def add_classes(parser: ArgumentParser, recorded_by: str = "") -> None:
    group = parser.add_argument_group("your own images")
    default = f" (default: as {recorded_by} was given)" if recorded_by else ""
    group.add_argument("--base-classes", nargs="+", metavar="CLASS",
                       help="common diseases and normal controls" + default)
    group.add_argument("--rare-classes", nargs="+", metavar="CLASS", help="rare diseases" + default)


def add_drawing(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("stricter tasks, where one is drawn")
    group.add_argument("--lesion-disjoint", action="store_true",
                       help="leave images of the support set's lesions out of the query set (ISIC 2018)")
    group.add_argument("--rare-split", action="store_true",
                       help="draw the support set from 70 %% of the rare images, and score on another "
                       "20 %%, the same for every seed (the papers' comparison with an oracle)")


def add_device(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("where it runs")
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    group.add_argument("--gpu", type=natural, metavar="ID", help="number of the GPU to use")
    group.add_argument("-j", "--workers", type=natural, default=4, metavar="N",
                       help="processes on this machine that read images, at most one a processor; "
                       "0: none beside the main one")


def add_skip_unreadable(group) -> None:
    group.add_argument("--skip-unreadable", action="store_true",
                       help="go on without images that cannot be decoded, and say which; all stages of "
                       "an experiment need it then")


def add_cache(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("decoded images")
    add_skip_unreadable(group)
    group.add_argument("--cache", type=Path, default=default_folder(), metavar="DIR",
                       help="folder where they are kept for later epochs and runs")
    group.add_argument("--no-cache", action="store_true", help="decode each image in every epoch")


def add_distributed(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("several processes")
    group.add_argument("--multiprocessing-distributed", action="store_true",
                       help="one process for each GPU of this machine")
    group.add_argument("--nproc", type=positive, metavar="N",
                       help="with it: this many processes instead (on a CPU, too)")
    group.add_argument("--world-size", type=positive, default=1, metavar="N", help="number of machines")
    group.add_argument("--rank", type=natural, default=0, metavar="N", help="which machine this is")
    group.add_argument("--dist-url", metavar="URL",
                       help="where those of several machines meet: tcp:// and a free port of the first "
                       "machine; those of one machine find each other")
    group.add_argument("--dist-timeout", type=number(float, 1), default=600, metavar="SECONDS",
                       help="how long they wait for each other at the start")
    group.add_argument("--dist-backend", default="auto", choices=["auto", "nccl", "gloo"],
                       help="auto: nccl between GPUs, gloo otherwise")


def _adder(group, from_teacher: bool) -> Callable:
    """`group.add_argument`; `from_teacher` leaves the default to the file of the stage before."""

    def add(*names: str, default, help: str, **how) -> None:
        if from_teacher:
            default, help = None, help + " (default: the teacher's)"
        group.add_argument(*names, default=default, help=help, **how)

    return add


def _add_backbone(add: Callable) -> None:
    add("-a", "--arch", choices=list(BACKBONES), default="resnet12", help="backbone")
    add("--image-size", type=number(int, MIN_IMAGE_SIZE), default=IMAGE_SIZE, metavar="PIXELS",
        help="images are resized to this width and height")
    add("--aug-plus", action=argparse.BooleanOptionalAction, default=False,
        help="MoCo v2's augmentation: hue and greyscale too")


def add_encoder(parser: ArgumentParser, from_teacher: bool = False) -> None:
    add = _adder(parser.add_argument_group("encoder and contrast"), from_teacher)
    _add_backbone(add)
    add("--moco-dim", type=positive, default=None, metavar="D",
        help="width of the embedding" + ("" if from_teacher else " (default: 128; conv4_released: 64)"))
    add("--moco-k", type=positive, default=1280, metavar="L", help="queue size: number of negative keys")
    add("--moco-m", type=number(float, 0, 1), default=0.999, metavar="M",
        help="momentum of the key encoder")
    add("--moco-t", type=number(float, 1e-6), default=0.07, metavar="T", help="softmax temperature")
    add("--mlp", action=argparse.BooleanOptionalAction, default=False, help="MoCo v2's hidden layer")
    add("--bn-groups", type=positive, default=4, metavar="N",
        help="parts of the total batch that BatchNorm treats apart, as that many GPUs would; with "
        "more processes than this, each is a part")


def add_training(parser: ArgumentParser, from_teacher: bool = False) -> None:
    group = parser.add_argument_group("training")
    add = _adder(group, from_teacher)
    add("--epochs", type=natural, default=EPOCHS, metavar="N",
        help="epochs to train; 0 writes the untrained encoder")
    add("-b", "--batch-size", type=positive, default=16, metavar="N",
        help="images a step, over all processes")
    add("--lr", "--learning-rate", type=number(float, 0), default=0.03, metavar="LR",
        help="learning rate at the start")
    add("--schedule", type=natural, nargs="*", default=list(DROPS), metavar="EPOCH",
        help="epochs at which the learning rate is divided by 10")
    add("--cos", action=argparse.BooleanOptionalAction, default=False, help="cosine schedule instead")
    add("--momentum", type=number(float, 0, 1, open_end=True), default=0.9, metavar="M",
        help="momentum of SGD")
    add("--wd", "--weight-decay", type=number(float, 0), default=1e-4, metavar="W", dest="wd",
        help="weight decay")
    add_amp(group, "the teacher's" if from_teacher else "on a GPU that has it")
    group.add_argument("--compile", action="store_true",
                       help="have torch.compile make code of the encoders: half a minute or more at the "
                       "start")
    group.add_argument("--views", choices=["batch", "pil"], dest="views_by",
                       help="how random views are made: of a batch at once, on the device, from the "
                       "cache of decoded images; or one at a time by PIL, in -j processes (default: the "
                       "former on a GPU)")
    group.add_argument("--start-epoch", type=natural, metavar="N",
                       help="number of a new run's first epoch (default: the checkpoint's with --resume, "
                       "else 0)")
    group.add_argument("--seed", type=natural, default=0, help="of everything random in the run")
    group.add_argument("--detect-anomaly", action="store_true",
                       help="have torch say which operation made a number that is none: much slower")
    group = parser.add_argument_group("what it writes")
    group.add_argument("--model_path", type=Path, required=True, metavar="DIR",
                       help="folder for checkpoints and log")
    group.add_argument("--resume", type=Path, metavar="PATH",
                       help="checkpoint, or its folder, to continue from (default: the one in "
                       "--model_path, if there is one)")
    group.add_argument("--overwrite", action="store_true", help="start anew over an existing run")
    group.add_argument("--save-minutes", type=number(float, 0), default=15, metavar="MINUTES",
                       help="between checkpoints, besides that of each epoch; 0: those alone")
    group.add_argument("-p", "--print-freq", type=positive, default=10, metavar="STEPS",
                       help="steps between updates of the loss on the screen")
    group.add_argument("--knn-every", type=natural, default=0, metavar="EPOCHS",
                       help="epochs between k-NN scores on the base set's classes, for the log "
                       "alone; 0: never")


def pretraining_parser() -> ArgumentParser:
    """main_moco.py"""
    parser = ArgumentParser("Stage (a): learn an encoder from the base images, without labels.")
    parser.add_argument("data", type=Path, metavar="DATA", help="data folder")
    add_classes(parser)
    add_training(parser)
    add_encoder(parser)
    add_cache(parser)
    add_device(parser)
    add_distributed(parser)
    return parser


def labelling_parser() -> ArgumentParser:
    """generate_pseudo.py"""
    parser = ArgumentParser(
        "Stages (b) and (c): draw a task, fit a classifier on its support set, and let it label "
        "the base images."
    )
    parser.add_argument("--datadir", type=Path, required=True, metavar="DATA", help="data folder")
    parser.add_argument("--resume", type=Path, required=True, metavar="PATH",
                        help="stage (a)'s checkpoint, or its folder")
    parser.add_argument("--savedir", type=Path, required=True, metavar="DIR",
                        help="folder for the task and the pseudo labels")
    parser.add_argument("-a", "--arch", choices=list(BACKBONES),
                        help="backbone; an error if the checkpoint's is another")
    parser.add_argument("--n_way", type=positive, metavar="N",
                        help="rare classes in the task, drawn if fewer than the data has (default: all)")
    parser.add_argument("--k_shot", type=positive, default=5, metavar="K",
                        help="support images of each rare class")
    parser.add_argument("--k_query", type=natural, default=15, metavar="Q",
                        help="say so if a class keeps fewer query images than this; the query set "
                        "is always all the rest")
    parser.add_argument("--augnum", type=natural, default=5, metavar="N",
                        help="augmented copies of each support image to fit on; 0: the image itself")
    parser.add_argument("--normalize", action="store_true",
                        help="fit the logistic regression on L2-normalised embeddings, as Tian et al. 2020")
    parser.add_argument("--seed", type=natural, default=0, help="of the task and the augmented copies")
    add_classes(parser, "stage (a)")
    add_drawing(parser)
    add_encoding(parser)
    return parser


def distillation_parser() -> ArgumentParser:
    """main_distill.py"""
    parser = ArgumentParser("Stage (d): distil a student from base images and their pseudo labels.")
    parser.add_argument("data", type=Path, metavar="DATA", help="data folder")
    group = parser.add_argument_group("distillation")
    group.add_argument("--savedir", type=Path, required=True, metavar="DIR",
                       help="generate_pseudo.py's folder: the task and the pseudo labels")
    group.add_argument("--p_label", action=argparse.BooleanOptionalAction, default=True,
                       help="learn from the pseudo labels; without, from contrast alone, as a control")
    group.add_argument("--pseudo-label", default="adaptive-hard",
                       choices=["adaptive-hard", "adaptive-soft", "hard", "soft"],
                       help="hard: the teacher's first choice, eq. (3); soft: its probabilities, "
                       "eq. (4); adaptive: mixed with the student's own view, eq. (5)")
    group.add_argument("--alpha", type=number(float, 0, 1), default=0.7, metavar="A",
                       help="weight of the student's own view in the labels at the end, eq. (5)")
    group.add_argument("--losses", default="con+cls", choices=["con+cls", "cls", "con+reg"],
                       help="what is added up: contrast, classification by pseudo labels, regression of "
                       "the teacher's embeddings")
    group.add_argument("--cls-loss", default="paper", choices=["paper", "released"],
                       help="classification loss: the papers', or that of the authors' code, which has one form "
                       "with a --correction and one without")
    group.add_argument("--correction", default="none", choices=["none", "dic", "ddl"],
                       help="of class imbalance: by the classes' dispersion, eqs. (6)-(9), or by how many "
                       "pseudo labels each has")
    group.add_argument("--dic-gamma", type=number(float, 0, 1), default=0.1, metavar="G",
                       help="how far the corrected temperatures may be apart")
    group.add_argument("--dic-scale", type=number(float, 1e-6), default=1, metavar="F",
                       help="factor on each class's share in eq. (7); the authors' code has the number "
                       "of classes, which spreads the temperatures that much further")
    group.add_argument("--dic-interval", type=positive, default=10, metavar="EPOCHS",
                       help="epochs between measurements of the dispersions; before the first, "
                       "nothing is corrected")
    group.add_argument("--dic-dispersion", default="normalized", choices=["normalized", "norm", "raw"],
                       help="variance of the normalised embeddings, of their lengths, or of the "
                       "embeddings as they are")
    group.add_argument("--n_way", type=positive, metavar="N",
                       help="rare classes; an error if the task's number is another")
    group.add_argument("--k_shot", type=positive, metavar="K",
                       help="support images a class; an error if the task's number is another")
    add_classes(parser, "stage (a)")
    add_training(parser, from_teacher=True)
    add_encoder(parser, from_teacher=True)
    add_cache(parser)
    add_device(parser)
    add_distributed(parser)
    return parser


def testing_parser() -> ArgumentParser:
    """test.py"""
    parser = ArgumentParser("Score an encoder or a student on all rare images but the support set.")
    parser.add_argument("data", type=Path, metavar="DATA", nargs="?",
                        help="data folder; not needed for --predict with --load_cla")
    parser.add_argument("--resume", type=Path, required=True, metavar="PATH",
                        help="checkpoint of stage (a) or (d), or its folder")
    parser.add_argument("-a", "--arch", choices=list(BACKBONES),
                        help="backbone; an error if the checkpoint's is another")
    parser.add_argument("--load_cla", action="store_true",
                        help="use the student's own classifier; without, a logistic regression is "
                        "fitted on the support set")
    parser.add_argument("--predict", type=Path, metavar="FOLDER",
                        help="say what the images in this folder are, instead of scoring; they need "
                        "no labels")
    parser.add_argument("--savedir", type=Path, metavar="DIR",
                        help="take the task from generate_pseudo.py's folder (a student knows its own)")
    parser.add_argument("--n_way", type=positive, metavar="N",
                        help="rare classes of the task to draw (default: all); an error if the task "
                        "has another number")
    parser.add_argument("--k_shot", type=positive, metavar="K",
                        help="support images a class of the task to draw (default: 5); an error if "
                        "the task has another number")
    parser.add_argument("--seed", type=natural, metavar="SEED",
                        help="of the task to draw (default: 0); an error if the task is of another")
    parser.add_argument("--augnum", type=natural, default=5, metavar="N",
                        help="augmented copies of each support image to fit on; 0: the image itself")
    parser.add_argument("--normalize", action="store_true",
                        help="fit the logistic regression on L2-normalised embeddings, as Tian et al. 2020")
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="folder for the scores (default: the checkpoint's)")
    add_classes(parser, "the training")
    add_drawing(parser)
    add_encoding(parser)
    return parser


def add_amp(group, default: str) -> None:
    group.add_argument("--amp", action=argparse.BooleanOptionalAction, default=None,
                       help="mixed precision: the encoders compute in bfloat16 where that is safe, the "
                       f"rest in 32 bits (default: {default})")


def add_encoding(parser: ArgumentParser) -> None:
    parser.add_argument("-b", "--batch-size", type=positive, default=32, metavar="N",
                        help="images encoded at a time")
    add_amp(parser, "on a GPU that has it")
    add_cache(parser)
    parser.add_argument("--overwrite", action="store_true", help="write over what is there")
    add_device(parser)


def _baseline_parser(description: str) -> tuple[ArgumentParser, Callable]:
    """What the baselines' parsers share, and what adds to the group of the encoder."""
    parser = ArgumentParser(description)
    parser.add_argument("data", type=Path, metavar="DATA", help="data folder")
    add_classes(parser)
    add_training(parser)
    add = _adder(parser.add_argument_group("method"), from_teacher=False)
    _add_backbone(add)
    add_cache(parser)
    add_device(parser)
    return parser, add


def scratch_parser() -> ArgumentParser:
    """baselines/scratch.py"""
    parser, add = _baseline_parser("Training from scratch on a task's support set.")
    add("--n_way", type=positive, default=None, metavar="N", help="rare classes of the task (default: all)")
    add("--k_shot", type=positive, default=5, metavar="K", help="support images a class")
    add("--oracle", action="store_true", default=False,
        help="instead: all that --rare-split, implied, has for training")
    add_drawing(parser)
    return parser


def simclr_parser() -> ArgumentParser:
    """baselines/simclr.py"""
    parser, add = _baseline_parser("SimCLR on the base images, without labels.")
    parser.set_defaults(aug_plus=True)
    add("--simclr-t", type=number(float, 1e-6), default=0.5, metavar="T", help="temperature of the loss")
    return parser


def srl_parser() -> ArgumentParser:
    """baselines/srl.py"""
    parser, add = _baseline_parser("Supervised representation learning on the base images' labels.")
    add("--teacher", type=Path, default=None, metavar="PATH",
        help="checkpoint of a run without this flag: distil it into a fresh model (SRL-distill)")
    add("--distill-t", type=number(float, 1e-6), default=4.0, metavar="T",
        help="temperature of the distillation")
    add("--distill-weight", type=number(float, 0, 1), default=0.5, metavar="W",
        help="weight of the distillation; the labels have the rest")
    return parser


# fmt: on
def encoder_values(args: argparse.Namespace) -> dict:
    """What `builder.MoCo` takes from the command line."""
    return {
        "make_encoder": functools.partial(build_encoder, args.arch, args.moco_dim, args.mlp),
        "embedding_dim": args.moco_dim,
        "queue_size": args.moco_k,
        "encoder_momentum": args.moco_m,
        "temperature": args.moco_t,
    }


def launch_plan(args: argparse.Namespace) -> Plan:
    """Which processes to start."""
    names = (
        "device", "gpu", "multiprocessing_distributed", "nproc", "world_size", "rank", "dist_url",
        "dist_backend", "dist_timeout",
    )  # fmt: skip
    return plan(**{name: getattr(args, name) for name in names})


def readers_of(args: argparse.Namespace) -> int:
    """How many processes read images for each process of the run."""
    here = launch_plan(args).on_machine if hasattr(args, "nproc") else 1  # baselines: one process
    return readers(args.workers, here)


def recorded(args: argparse.Namespace) -> dict:
    """The arguments as plain values, for a checkpoint or a log."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
