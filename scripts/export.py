"""Export the query encoder of a checkpoint or, with --classifier, the whole student F′, for use in
other code.

    python scripts/export.py runs/student encoder.pt
    python scripts/export.py runs/student student.onnx --classifier

The suffix of the output selects the format: .pt or .safetensors for the weights (a state dict), .ts
for a TorchScript program, .onnx for an ONNX graph. Prints the lines that load the file.
"""

import json
import warnings
from collections import OrderedDict
from pathlib import Path

try:
    import common.startup  # noqa: F401, I001
    import torch
    from torch import nn

    import baselines
    from common.errors import InputError
    from common.failures import tracebacks_to
    from common.files import atomic_write, refuse_to_overwrite
    from common.packages import required
    from moco.checkpoint import load_checkpoint, no_classifier, query_encoder, student_classifier
    from models import BACKBONES
    from trainer import cli
    from trainer.checkpoint import torch_save
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: pip install -e . first, in the repository's folder") from None

BATCH = 2  # batch size of the example input for tracing
RESIZE = (
    "of the upright 8-bit RGB image to a square, bilinear with antialiasing as PIL's or "
    "torchvision's Resize((S, S)), not OpenCV's; then divided by 255"
)


def make_parser() -> cli.ArgumentParser:
    parser = cli.ArgumentParser(
        "Export the network of a checkpoint as weights (.pt, .safetensors), a TorchScript program "
        "(.ts) or an ONNX graph (.onnx)."
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint, or the folder of a run")
    parser.add_argument("out", type=Path, help="output file; its suffix selects the format")
    help = "include the student's classifier: class logits instead of embeddings"
    parser.add_argument("--classifier", action="store_true", help=help)
    parser.add_argument("--overwrite", action="store_true", help="overwrite an existing file")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.out.suffix not in WRITERS:
        raise InputError(f"{args.out}: the suffix must be one of {', '.join(WRITERS)}")
    tracebacks_to(args.out.parent)
    refuse_to_overwrite([args.out], args.overwrite)
    baselines.register_all()
    checkpoint = load_checkpoint(args.checkpoint)
    if args.classifier and (kind := no_classifier(checkpoint)):
        raise InputError(
            f"--classifier: {args.checkpoint} is of {kind} and has no trained classifier"
        )
    model, built_by = network(checkpoint, args.classifier)
    size = checkpoint["args"]["image_size"]
    outputs, about = "embeddings", {"image_size": str(size), "resize": RESIZE}
    if args.classifier and checkpoint["task"]:
        classes = checkpoint["task"]["classes"]
        about["classes"] = json.dumps(classes, ensure_ascii=False)
        outputs = f"logits of {', '.join(classes)}"
    elif args.classifier:  # from the authors' code
        classes = student_classifier(checkpoint).linear.out_features
        outputs = f"logits of {classes} classes (no names in the checkpoint)"
    print("\n".join(WRITERS[args.out.suffix](model, built_by, size, args.out.resolve(), about)))
    shape = f"N×3×{size}×{size} with values in [0, 1] (resize {RESIZE})"
    print(f"# images, {shape}, to {outputs}; written: {args.out}")


def network(checkpoint: dict, classifier: bool) -> tuple[nn.Module, str]:
    """Return the network in evaluation mode and an expression that builds the architecture."""
    args, encoder = checkpoint["args"], query_encoder(checkpoint)
    sized = "" if args["arch"] in BACKBONES else f", image_size={args['image_size']}"
    built_by = f"build_encoder({args['arch']!r}, {args['moco_dim']}, mlp={args['mlp']}{sized})"
    if not classifier:
        return encoder, built_by
    head = student_classifier(checkpoint)
    shape = f"LinearClassifier({head.linear.in_features}, {head.linear.out_features})"
    both = OrderedDict(encoder=encoder, classifier=head)
    built_by = f"torch.nn.Sequential(OrderedDict(encoder={built_by}, classifier={shape}))"
    return nn.Sequential(both).eval(), built_by


def write_weights(
    model: nn.Module, built_by: str, size: int, out: Path, about: dict[str, str]
) -> list[str]:
    if out.suffix == ".safetensors":
        save = required("safetensors.torch", "safetensors", ".safetensors needs").save
        with atomic_write(out) as file:
            file.write(save({k: v.contiguous() for k, v in model.state_dict().items()}))
        read, load = "from safetensors.torch import load_file", f"load_file({str(out)!r})"
    else:
        with atomic_write(out) as file:
            torch_save(model.state_dict(), file)
        read, load = "import torch", f"torch.load({str(out)!r}, weights_only=True)"
    if "Sequential" in built_by:
        read += "; import torch; from collections import OrderedDict"
    return [
        f"{read}; from models import LinearClassifier, build_encoder",
        f"model = {built_by}.eval()",
        f"model.load_state_dict({load})",
    ]


def write_program(
    model: nn.Module, built_by: str, size: int, out: Path, about: dict[str, str]
) -> list[str]:
    with torch.no_grad(), warnings.catch_warnings(), atomic_write(out) as file:
        warnings.simplefilter("ignore", FutureWarning)  # torch recommends torch.export
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes are fixed
        program = torch.jit.trace(model, torch.rand(BATCH, 3, size, size))
        torch.jit.save(program, file)
    return ["import torch", f"model = torch.jit.load({str(out)!r})"]


def write_graph(
    model: nn.Module, built_by: str, size: int, out: Path, about: dict[str, str]
) -> list[str]:
    for package in ("onnx", "onnxscript"):
        required(package, package, ".onnx needs")
    output = "logits" if isinstance(model, nn.Sequential) else "embeddings"
    program = torch.onnx.export(
        model,
        (torch.rand(BATCH, 3, size, size),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("images")},),
        verbose=False,
        input_names=["images"],
        output_names=[output],
    )
    graph = program.model_proto
    for key, value in about.items():
        graph.metadata_props.add(key=key, value=value)
    with atomic_write(out) as file:
        file.write(graph.SerializeToString())
    return [
        "import onnxruntime",
        f"model = onnxruntime.InferenceSession({str(out)!r})",
        'outputs = model.run(None, {"images": images})[0]',
    ]


WRITERS = {
    ".pt": write_weights,
    ".safetensors": write_weights,
    ".ts": write_program,
    ".onnx": write_graph,
}


if __name__ == "__main__":
    cli.run(main)
