"""Export the encoder of a run for use without ssl_suite.

python scripts/export.py RUN                        # weights for plain timm or torchaudio, with the code that loads them
python scripts/export.py RUN --format onnx          # an ONNX file, checked against PyTorch
python scripts/export.py RUN --format backbone --width 32 --depth 2     # a smaller net out of a run of model=poa, for init_from=
python scripts/export.py RUN --licence cc-by-4.0    # the licence that the model card states

Width and depth cut a slice out of a patch transformer for any of the formats; only model=poa trains slices to be good.
Beside what a finished run exports lies README.md, the model card: method, data, seed, scores beside references, command,
configuration, licence.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ssl_suite.batch import Spec
from ssl_suite.io.export import cut, export_onnx, export_weights, model_card
from ssl_suite.io.weights import read_description, save_backbone, weights_file
from ssl_suite.programs import guarded, parser
from ssl_suite.run import load_exported


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("run", type=Path, help="run folder or backbone.safetensors")
    arguments.add_argument("--format", choices=("weights", "onnx", "backbone"), default="weights",
                           help="what to write (default: weights)")
    arguments.add_argument("--width", type=int, help="width of the slice (default: the whole)")
    arguments.add_argument("--depth", type=int, help="blocks of the slice (default: all)")
    arguments.add_argument("--out", type=Path, help="file to write (default: RUN/export/...)")
    arguments.add_argument("--licence", help="of the weights, for the model card, as model hubs name it (default: unknown)")
    given = arguments.parse_args()
    backbone, spec = load_exported(given.run)
    folder = given.run if given.run.is_dir() else given.run.parent
    config = read_description(weights_file(given.run))[1]
    if given.width or given.depth:
        backbone, config = cut(backbone, config, given.width, given.depth)
    names = {"onnx": "encoder.onnx", "weights": "weights.safetensors", "backbone": "backbone.safetensors"}
    out = given.out or folder / "export" / names[given.format]
    out.parent.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True)
    if given.format == "onnx":
        difference = export_onnx(backbone, spec, out)
        console.print(f"{out}: features equal PyTorch's within {difference:.1e}")
    elif given.format == "backbone":
        save_backbone(out, backbone, spec, config)
        console.print(f"{out}: {sum(p.numel() for p in backbone.parameters()) / 1e6:.2f} M parameters; init_from={out}")
    else:
        code = export_weights(backbone, out)
        loader = out.with_name("load.py")
        loader.write_text(f"# Run in this folder. {note(spec)}\n{code}")
        console.print(f"{out}\n{loader}: loads it without ssl_suite")
    if (folder / "summary.json").is_file():
        out.with_name("README.md").write_text(model_card(folder, given.licence))
        console.print(f"{out.with_name('README.md')}: the model card")


def note(spec: Spec) -> str:
    """What the network expects, in one line."""
    return (f"Input: {spec.modality}, {tuple(spec.shape)} per sample, minus mean {list(spec.mean)}, "
            f"divided by {list(spec.std)}.")


if __name__ == "__main__":
    guarded(main)
