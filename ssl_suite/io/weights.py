"""Weights in and out: safetensors with a description inside, strict loading with a report of what went where."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ssl_suite.batch import Spec
from ssl_suite.io.checkpoints import newest_checkpoint
from ssl_suite.io.names import plain_names

PREFIXES = ("backbone.net.", "backbone.", "net.", "module.backbone.", "module.", "model.", "encoder.", "student.backbone.", "")
HEADS = ("fc.", "head.", "classifier.", "projector.", "decoder.", "aux.", "mask_token", "pooler.", "lm_head.", "masked_spec_embed")


@dataclass
class Mapping:
    """What `load_backbone` did.

    Attributes:
        source: the file.
        loaded: number of tensors loaded.
        prefix: what was taken off the names in the file and put on instead.
        unused: names in the file that nothing took.
        resized: what was interpolated, with the grids before and after; empty where all fitted.
    """

    source: Path
    loaded: int
    prefix: tuple[str, str]
    unused: list[str]
    resized: str = ""

    def __str__(self) -> str:
        renamed = f", names '{self.prefix[0]}*' -> '{self.prefix[1]}*'" if self.prefix[0] != self.prefix[1] else ""
        unused = f", not used: {', '.join(self.unused[:4])}{' ...' if len(self.unused) > 4 else ''}" if self.unused else ""
        resized = f", interpolated: {self.resized}" if self.resized else ""
        return f"{self.loaded} tensors from {self.source}{renamed}{resized}{unused}"


def save_backbone(path: Path, backbone: nn.Module, spec: Spec, config: dict[str, Any]) -> None:
    """Write a backbone's weights with what is needed to build it again.

    Args:
        path: a ``.safetensors`` file.
        backbone: the network.
        spec: the data it was built for.
        config: ``_target_`` and arguments of its constructor.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    temporary = path.with_name(f".{path.name}.tmp")
    save_file(tensors, temporary, metadata={"spec": json.dumps(spec.to_dict()), "backbone": json.dumps(config)})
    temporary.replace(path)


def read_description(path: Path) -> tuple[Spec, dict[str, Any]]:
    """Spec and constructor arguments kept in a file of `save_backbone`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds no description.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); write it again") from error
    if "spec" not in metadata:
        raise ValueError(f"{path} was not written by ssl_suite: it does not say what backbone it holds")
    return Spec.from_dict(json.loads(metadata["spec"])), json.loads(metadata["backbone"])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file or a weights-only torch file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds anything but tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give a run folder, a .safetensors file or a torch checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a plain file of weights ({str(error).splitlines()[0]})") from error
    for key in ("state_dict", "model", "teacher", "student"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not named tensors")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def weights_file(source: Path) -> Path:
    """The file of weights that a run folder or a path stands for."""
    if not source.is_dir():
        return source
    exported = source / "backbone.safetensors"
    return exported if exported.is_file() else newest_checkpoint(source)


def load_backbone(backbone: nn.Module, source: Path) -> Mapping:
    """Load weights into a backbone, strictly: every tensor of the backbone must be found in its right shape.

    Names may carry a prefix (``backbone.``, ``module.`` ...), or be those of the wrapped timm or torchaudio network, or of the same
    network in Hugging Face's transformers (`ssl_suite.io.names`). Learned positions of a ViT for another size of picture are
    interpolated, and the report says so.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors are missing or of another shape; the message names them.
    """
    path = weights_file(source)
    tensors, wanted = plain_names(read_tensors(path)), backbone.state_dict()

    def renamed(old: str, new: str) -> dict[str, str]:
        return {new + name[len(old):]: name for name in tensors if name.startswith(old)}

    options = [(old, new) for old in PREFIXES for new in ("", "net.")]
    prefix = max(options, key=lambda option: len(wanted.keys() & renamed(*option).keys()))
    names = renamed(*prefix)
    missing = sorted(wanted.keys() - names.keys())
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} of the backbone's {len(wanted)} tensors ({', '.join(missing[:4])} ...); "
                         "is it the same backbone? see config.yaml of the run it came from")
    resized = fit_positions(backbone, wanted, tensors, names)
    for name, value in wanted.items():
        if tensors[names[name]].shape != value.shape:
            raise ValueError(f"{path}: {names[name]} is {tuple(tensors[names[name]].shape)} but {name} needs {tuple(value.shape)}; "
                             "build the backbone for the same input size and width")
    backbone.load_state_dict({name: tensors[names[name]] for name in wanted})
    used = {names[name] for name in wanted}
    unused = sorted(name for name in tensors if name not in used and not name.startswith(HEADS))
    return Mapping(path, len(wanted), prefix, unused, resized)


def fit_positions(backbone: Any, wanted: dict[str, Tensor], tensors: dict[str, Tensor], names: dict[str, str]) -> str:
    """Interpolate a ViT's learned positions to the backbone's grid where only their number differs; says what was done.

    Args:
        backbone: the network; one without learned positions is left alone.
        wanted: its tensors.
        tensors: those of the file, changed in place.
        names: name in the backbone -> name in the file.
    """
    name = "net.pos_embed"
    if name not in wanted or (old := tensors[names[name]]).ndim != 3 or old.shape[2] != wanted[name].shape[2]:
        return ""
    prefix = 0 if backbone.net.no_embed_class else backbone.num_prefix_tokens
    side = math.isqrt(old.shape[1] - prefix)
    if old.shape == wanted[name].shape or side ** 2 != old.shape[1] - prefix:
        return ""
    tensors[names[name]] = resample_abs_pos_embed(old, list(backbone.grid), [side, side], num_prefix_tokens=prefix)
    return f"positions of {side}x{side} patches to {'x'.join(map(str, backbone.grid))}"
