"""Two switches for the whole of a method: compiled networks, and activations that are computed twice instead of kept."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def attention_blocks(module: nn.Module) -> list[nn.Module]:
    """Blocks of all transformers inside a module: what holds an attention of timm (``attn``) or torchaudio (``attention``)."""
    return [part for part in module.modules() if hasattr(part, "attn") or hasattr(part, "attention")]


def compile_networks(module: nn.Module, **options: Any) -> None:
    """Let ``torch.compile`` take each block of a transformer, and convolutional backbones from input to last maps, in place.

    Names of weights stay, so checkpoints and exports do; copies of blocks that are made later run uncompiled.

    Args:
        module: a method, with whatever teachers, decoders and predictors it has.
        options: as ``torch.compile`` takes them.
    """
    for block in attention_blocks(module):
        block.compile(**options)
    for part in module.modules():
        if hasattr(part, "stages"):
            part.compiled = options  # type: ignore[assignment]


def checkpoint_blocks(module: nn.Module) -> None:
    """Keep only the input of each transformer block for the way back and compute its inside again: less memory, more time.

    Gradients stay the same to the last bit, dropout included. Convolutional nets are left alone: computed twice, BatchNorm would
    move its statistics twice.

    Raises:
        ValueError: there is no transformer in the module.
    """
    blocks = attention_blocks(module)
    if not blocks:
        raise ValueError("activation_checkpointing=true needs a transformer, and this method has none; leave it out, or take "
                         "another backbone")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
