"""Encoders for the world outside: safetensors for plain timm or torchaudio, ONNX for runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_suite.batch import Spec
from ssl_suite.config import ConfigError, require
from ssl_suite.nn.elastic import extract
from ssl_suite.summary import read_summary

CARD = """---
license: {{ licence or "unknown" }}
library_name: ssl-suite
tags:
- self-supervised-learning
- {{ method }}
---

# {{ method }} on {{ data }}

- Licence of the weights: {{ licence or "not stated; ask whoever trained them, and mind the terms of the data" }}
- Method: {{ method }}, from {{ start }}
- Data: {{ data }} ({{ modality }})
- Seed: {{ seed }}
- Code: ssl-suite, commit {{ commit }};{% for name, version in versions.items() %} {{ name }} {{ version }}{% endfor %}

- Time: {{ "%.0f" | format(wall_seconds) }} s, evaluation included

## Scores

| |{% for name in columns %} {{ name }} |{% endfor %}

|---|{% for name in columns %}---|{% endfor %}

{% for score in scores %}
| {{ score }} |{% for values in columns.values() %} {{ "%.4f" | format(values[score]) if score in values }} |{% endfor %}

{% endfor %}

## Command

```
{{ command }}```

## Configuration

```yaml
{{ config }}```
"""


class Pooled(nn.Module):
    """A backbone with one input and one output, as a runtime wants it.

    Args:
        backbone: the encoder; its input is standardised samples without padding.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


def example(spec: Spec, size: int = 2) -> Tensor:
    """Samples of the shape a backbone takes."""
    return torch.randn(size, *spec.shape, generator=torch.Generator().manual_seed(0))


def cut(backbone: Any, config: dict[str, Any], width: int | None, depth: int | None) -> tuple[nn.Module, dict[str, Any]]:
    """A slice of a patch transformer, and the configuration that builds it.

    Args:
        backbone: the whole.
        config: ``_target_`` and arguments of its constructor.
        width: width of the slice; None keeps the whole.
        depth: number of its blocks; None keeps all.

    Raises:
        ConfigError: the backbone cannot be cut, or not to this size.
    """
    if not hasattr(backbone, "resized"):
        raise ConfigError(f"--width and --depth cut patch transformers, and {type(backbone).__name__} is none")
    blocks = [m for m in backbone.modules() if hasattr(m, "head_dim")]
    width, depth = width or backbone.num_features, depth or len(blocks)
    if not width <= backbone.num_features or not 1 <= depth <= len(blocks):
        raise ConfigError(f"--width {width} --depth {depth} must lie within the backbone's "
                          f"{backbone.num_features} and {len(blocks)}")
    try:
        small = extract(backbone, width, depth)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return small, {**config, "width": width, "depth": depth, "heads": width // blocks[0].head_dim}


def export_weights(backbone: Any, path: Path) -> str:
    """Write the weights of the wrapped timm or torchaudio network under its own names.

    Returns:
        Python code that loads the file without ssl_suite.

    Raises:
        ConfigError: the backbone is the suite's own and wraps no such network.
    """
    if not hasattr(backbone, "net") or not hasattr(backbone, "recipe"):
        raise ConfigError(f"{type(backbone).__name__} is the suite's own network and wraps none of timm or torchaudio; "
                          "export it as ONNX, or load backbone.safetensors with ssl_suite.run.load_exported")
    try:
        recipe = backbone.recipe()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    tensors = {name: value.detach().cpu().contiguous() for name, value in backbone.net.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return f"from safetensors.torch import load_file\n{recipe}\n\nnet.load_state_dict(load_file({path.name!r}))\nnet.eval()\n"


def model_card(run: Path, licence: str | None) -> str:
    """What a stranger should know of exported weights, in Markdown with the header that model hubs read.

    Args:
        run: folder of a finished run.
        licence: of the weights; None says that nobody stated one.
    """
    told, command = read_summary(run), run / "command.txt"
    config = (run / "config.yaml").read_text()
    columns = {"this run": told["scores"], **{name: scores for name, scores in told["references"].items() if scores}}
    return Environment(trim_blocks=True, keep_trailing_newline=True).from_string(CARD).render(
        **told, licence=licence, columns=columns, config=config, start=yaml.safe_load(config).get("init_from") or "random weights",
        command=command.read_text() if command.is_file() else "not recorded\n")


def export_onnx(backbone: nn.Module, spec: Spec, path: Path) -> float:
    """Write the encoder as ONNX with a free batch size, and check it against PyTorch.

    Returns:
        Largest absolute difference of the features on random samples.

    Raises:
        ConfigError: the difference exceeds 1e-4.
        ImportError: onnx, onnxruntime or onnxscript is missing.
    """
    for module in ("onnx", "onnxscript"):
        require(module, extra="export")
    runtime = require("onnxruntime", extra="export")
    model, x = Pooled(backbone).eval().cpu(), example(spec)
    program = torch.onnx.export(model, (x,), dynamo=True, input_names=["x"], output_names=["features"],
                                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},), verbose=False)
    assert program is not None
    program.save(str(path))
    other = example(spec, 5)
    made = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": other.numpy()})[0]
    with torch.no_grad():
        difference = float((torch.from_numpy(made) - model(other)).abs().max())
    if difference > 1e-4:
        raise ConfigError(f"{path}: features differ from PyTorch's by {difference:.1e}; the file is not to be trusted")
    return difference
