"""Export the encoder of a run for use without ssl_suite.

python scripts/export.py RUN                        # weights for plain timm or torchaudio, with the code that loads them
python scripts/export.py RUN --format onnx          # an ONNX file, checked against PyTorch
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ssl_suite.batch import Spec
from ssl_suite.io.export import export_onnx, export_weights
from ssl_suite.programs import guarded, parser
from ssl_suite.run import load_exported


def main() -> None:
    """Entry point."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("run", type=Path, help="run folder or backbone.safetensors")
    arguments.add_argument("--format", choices=("weights", "onnx"), default="weights", help="what to write (default: weights)")
    arguments.add_argument("--out", type=Path, help="file to write (default: RUN/export/...)")
    given = arguments.parse_args()
    backbone, spec = load_exported(given.run)
    folder = given.run if given.run.is_dir() else given.run.parent
    out = given.out or folder / "export" / ("encoder.onnx" if given.format == "onnx" else "weights.safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True)
    if given.format == "onnx":
        difference = export_onnx(backbone, spec, out)
        console.print(f"{out}: features equal PyTorch's within {difference:.1e}")
    else:
        code = export_weights(backbone, out)
        loader = out.with_name("load.py")
        loader.write_text(f"# Run in this folder. {note(spec)}\n{code}")
        console.print(f"{out}\n{loader}: loads it without ssl_suite")


def note(spec: Spec) -> str:
    """What the network expects, in one line."""
    return (f"Input: {spec.modality}, {tuple(spec.shape)} per sample, minus mean {list(spec.mean)}, "
            f"divided by {list(spec.std)}.")


if __name__ == "__main__":
    guarded(main)
