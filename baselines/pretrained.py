"""A pretrained encoder as it comes: nothing is trained, the backbone's features are the embedding.

python -m baselines.pretrained --arch timm/tf_efficientnet_lite0 --model-path OUT
python test.py DATA --resume OUT --k-shot 5 --seed 0
python generate_pseudo.py DATA --resume OUT --savedir LABELS

By default the logistic regression on its features is fitted on the support images themselves
(--augnum 0): frozen features are compared without augmentation by Kornblith et al. 2019 (arXiv
1805.08974) and Chen et al. 2020 (arXiv 2002.05709, appendix B.8).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.files import refuse_to_overwrite, write_utf8
from common.seeding import stream_seed
from moco import resume
from moco.checkpoint import load_checkpoint, save_checkpoint
from moco.config import Backbone, Cache, Classes, Stage, data_folder, register
from moco.weights import initial_weights, load_initial
from models import build_encoder
from trainer import cli
from trainer.checkpoint import CHECKPOINT
from trainer.flags import parse
from trainer.log import LOG
from trainer.provenance import provenance
from trainer.settings import resolve, setting, with_default

from . import register_all

NO_IMAGES = {"dataset": "no images of this project", "counts": {}, "sha256": "none"}


@dataclass(frozen=True, kw_only=True)
class Pretrained(Classes, Backbone, Cache):
    """baselines/pretrained.py"""

    description = "A pretrained encoder, frozen: its features are the embeddings."

    data: Path | None = data_folder(
        None, "data folder, to check it and the names of your own classes now; no image is used"
    )
    weights: str = with_default(Backbone, "weights", "default")
    seed: int = setting(0, "seed of the random weights of --weights none", low=0)
    model_path: Path = setting(help="folder for the checkpoint", metavar="DIR")
    overwrite: bool = setting(False, "overwrite an existing run")


register(
    Stage(
        "pretrained", "a pretrained encoder, baselines/pretrained.py", Pretrained,
        trained=False, augnum=0,
    )
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    register_all()
    settings = resolve(Pretrained, parse(Pretrained, argv))
    data = settings.open_data() if settings.data else None
    # What a student inherits, besides the settings: the features themselves, plain views.
    args = {**settings.record(), "aug_plus": False, "moco_dim": 0, "mlp": False}
    folder, initial = settings.model_path, None
    if resume.holds_run(folder) and not settings.overwrite:
        previous = load_checkpoint(folder)
        same = previous["stage"] == "pretrained" and previous["args"] == args
        if same and Path(settings.weights).exists():  # it may be gone
            initial = initial_weights(settings.weights, settings.arch)
            same = initial is not None and previous["weights"] == initial.record
        if same:
            print(f"already done: {folder / CHECKPOINT}")
            return
    refuse_to_overwrite([folder / CHECKPOINT], settings.overwrite)
    torch.manual_seed(stream_seed("weights", settings.seed))
    encoder = build_encoder(settings.arch, None, image_size=settings.image_size)
    model = nn.ModuleDict({"query_encoder": encoder})  # test.py expects this name
    initial = initial or initial_weights(settings.weights, settings.arch)
    if initial:
        load_initial(model, initial)
    about = {
        "stage": "pretrained",
        "args": args,
        "data": data and data.to_dict(),
        "base": NO_IMAGES,
        "task": None,
        "weights": initial and initial.record,
        "made_by": provenance(),
    }
    write_utf8(folder / LOG, json.dumps({"start_epoch": 0, **about}) + "\n")
    weights = {"state_dict": model.state_dict(), "optimizer": {}}
    save_checkpoint(folder, {**about, "epoch": 0, **weights})
    print(f"{settings.arch}, {encoder.out_features} features: {folder / CHECKPOINT}")


if __name__ == "__main__":
    cli.run(main)
