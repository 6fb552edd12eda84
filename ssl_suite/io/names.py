"""Names of weights as Hugging Face's transformers give them, turned into those of timm and torchaudio."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Rules = Sequence[tuple[str, str]]

VIT: Rules = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
    (r"^encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
    (r"^encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.layer\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^layernorm\.", "norm."))
"""ViT, DeiT, ViT-MAE, ViT-MSN and DINOv2."""

# Stages and convolutions are counted from 0 there and from 1 in timm: the figures are raised afterwards.
RESNET: Rules = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.", r"layer+\1.\2.conv+\3."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.", r"layer+\1.\2.bn+\3."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.", r"layer+\1.\2.downsample.0."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.", r"layer+\1.\2.downsample.1."))

WAV2VEC2: Rules = (
    (r"^feature_projection\.", "encoder.feature_projection."),
    (r"^encoder\.(pos_conv_embed|layer_norm|layers)\.", r"encoder.transformer.\1."),
    (r"\.conv\.weight_g$", ".conv.parametrizations.weight.original0"),
    (r"\.conv\.weight_v$", ".conv.parametrizations.weight.original1"))
"""wav2vec 2.0 and HuBERT."""

FAMILIES: Mapping[str, Rules] = {"embeddings.patch_embeddings.projection.weight": VIT,
                                 "embedder.embedder.convolution.weight": RESNET, "feature_projection.projection.weight": WAV2VEC2}
"""A name that only one family has -> its rules."""


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of timm or torchaudio where they have those of transformers; others as they are.

    Whatever lies beside the encoder (a classifier, a decoder) keeps its name. Queries, keys and values of a ViT become one tensor.
    """
    for mark, rules in FAMILIES.items():
        found = next((name for name in tensors if name.endswith(mark)), None)
        if found is not None and not found.endswith(f"encoder.{mark}"):  # torchaudio's own network has it there
            prefix = found.removesuffix(mark)
            return joined({renamed(name, prefix, rules): value for name, value in tensors.items()})
    return dict(tensors)


def renamed(name: str, prefix: str, rules: Rules) -> str:
    """One name, without the prefix of the encoder; as it is where it does not begin with that."""
    if not name.startswith(prefix):
        return name
    name = name.removeprefix(prefix)
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"\+(\d+)", lambda match: str(int(match[1]) + 1), name)


def joined(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of each block as one tensor, where all three are there."""
    for name in [name for name in tensors if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in tensors for part in parts):
            tensors[name.replace(".query.", ".qkv.")] = torch.cat([tensors.pop(part) for part in parts])
    return tensors
