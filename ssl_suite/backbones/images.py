"""Backbones for pictures (B, C, H, W): timm's ViT and ResNet, and the small nets used on CIFAR and on digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.layers import GroupNorm, resample_abs_pos_embed
from timm.models.resnet import ResNet as TimmResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import CenterCrop

from ssl_suite.backbones import Stage, Staged
from ssl_suite.batch import Spec
from ssl_suite.nn.transformer import ShortAttention, attention_mask, mean_pool, whole_heads

Norm = Literal["batch", "group"]


def norm_layer(norm: Norm) -> Callable[..., nn.Module]:
    """BatchNorm, or GroupNorm in 8 groups, which looks at no other sample of the batch.

    Raises:
        ValueError: another name.
    """
    layers: dict[str, Callable[..., nn.Module]] = {"batch": nn.BatchNorm2d, "group": partial(GroupNorm, num_groups=8)}
    if norm not in layers:
        raise ValueError(f"norm must be 'batch' or 'group', got {norm!r}")
    return layers[norm]


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias, by He's rule on its outputs."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class ViT(nn.Module):
    """A timm vision transformer in `net`, whose weights load into plain ``timm.create_model`` and the other way round.

    The net ends in its norm over all tokens, also for ``pool="mean"`` (timm's own mean pooling would norm after it and
    so name its weights differently). Pictures of another size than the specification's get interpolated positions.

    Args:
        spec: what a picture looks like.
        name: timm's name; sets whatever is not given here.
        patch_size: side of a patch, pixels.
        width: width D of a token.
        depth: number of blocks.
        heads: attention heads.
        pool: ``mean`` of the patch tokens, or the ``class`` token.

    Raises:
        ValueError: the picture is no multiple of the patch, the heads do not divide the width, or the name is no plain
            ViT.
    """

    net: Any
    num_prefix_tokens: int

    def __init__(self, spec: Spec, *, name: str = "vit_tiny_patch16_224", patch_size: int = 4, width: int | None = None,
                 depth: int | None = None, heads: int | None = None, pool: Literal["mean", "class"] = "mean") -> None:
        super().__init__()
        if pool not in ("mean", "class"):
            raise ValueError(f"pool must be 'mean' or 'class', got {pool!r}")
        self.spec, self.patch_size = spec, patch_size
        self.pool: Literal["mean", "class"] = pool
        channels, height, columns = spec.shape
        self.grid = self.grid_of(height, columns)
        if width and heads and width % heads:
            raise ValueError(f"width={width} cannot be split over heads={heads}; make it a multiple")
        given: dict[str, Any] = {"embed_dim": width, "depth": depth, "num_heads": heads}
        self.made = {"model_name": name, "num_classes": 0, "in_chans": channels, "img_size": (height, columns),
                     "patch_size": patch_size, "dynamic_img_size": True,
                     **{key: value for key, value in given.items() if value is not None}}
        self.net = net = timm.create_model(**self.made, attn_layer=ShortAttention)
        if not isinstance(net, VisionTransformer) or isinstance(net.norm, nn.Identity) or net.attn_pool is not None:
            raise ValueError(f"name={name!r} is no transformer that ends in a norm over its tokens; take a plain one, "
                             f"such as vit_small_patch16_224")
        if pool == "class" and not self.net.has_class_token:
            raise ValueError(f"pool='class' needs a class token and {name!r} has none; use pool='mean'")
        self.num_features, self.num_prefix_tokens = self.net.num_features, self.net.num_prefix_tokens
        self.patch_dim = channels * patch_size ** 2

    @property
    def frontend(self) -> nn.Module:
        """The convolution that embeds patches: what lies below the transformer."""
        return self.net.patch_embed

    def recipe(self) -> str:
        """Python code that makes this network, still untrained, with timm alone, and says how features are read off it."""
        pooled = "[:, 0]" if self.pool == "class" else f"[:, {self.num_prefix_tokens}:].mean(dim=1)"
        make = f"import timm\n\nnet = timm.create_model(**{self.made!r})\n"
        return f"{make}\n\ndef features(x):\n    return net.forward_features(x){pooled}\n"

    def resized(self, width: int, depth: int) -> ViT:
        """An untrained net of the same kind, of another width and depth; heads keep their width.

        Raises:
            ValueError: the width is no multiple of that of a head.
        """
        heads = whole_heads(width, self.net.blocks[0].attn.head_dim)
        return ViT(self.spec, name=self.made["model_name"], patch_size=self.patch_size, width=width, depth=depth, heads=heads,
                   pool=self.pool)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a picture.

        Raises:
            ValueError: the picture is no multiple of the patch.
        """
        if height % self.patch_size or width % self.patch_size:
            side = self.patch_size
            raise ValueError(f"a picture of {height}x{width} pixels cannot be cut into patches of {side}x{side}; "
                             f"choose a patch_size that divides both sides, or pad or resize the picture")
        return height // self.patch_size, width // self.patch_size

    def patches(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Pixels of the patches in row-major order, (B, N, P); P runs over channel, row, column."""
        self.grid_of(*x.shape[2:])
        return F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)

    def positions(self, x: Tensor) -> Tensor:
        """Positions of the patches of pictures of this size, (1, N, D)."""
        grid = self.grid_of(*x.shape[2:])
        position = self.net.pos_embed
        prefix = 0 if self.net.no_embed_class else self.num_prefix_tokens
        if grid != self.grid:
            position = resample_abs_pos_embed(position, new_size=list(grid), old_size=list(self.grid),
                                              num_prefix_tokens=prefix)
        return position[:, prefix:]

    def embed(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Patch embedding plus position, (B, N, D), without the class token."""
        positions = self.positions(x)
        return self.net.patch_embed(x).flatten(1, 2) + positions

    def prefix_tokens(self) -> Tensor | None:
        """Class token and registers with their positions, (1, prefix, D); None where the net has neither."""
        parts = [part for part in (self.net.cls_token, self.net.reg_token) if part is not None]
        if not parts:
            return None
        prefix = torch.cat(parts, dim=1)
        return prefix if self.net.no_embed_class else prefix + self.net.pos_embed[:, :self.num_prefix_tokens]

    def enter(self, tokens: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the first block takes: tokens (B, prefix + M, D) and their attention mask."""
        prefix = self.prefix_tokens()
        if prefix is not None:
            tokens = torch.cat([prefix.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
            valid = None if valid is None else F.pad(valid, (self.num_prefix_tokens, 0), value=True)
        return self.net.norm_pre(self.net.pos_drop(tokens)), attention_mask(valid)

    def encode(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        """Class token, blocks and final norm over tokens (B, M, D), all or the visible ones, as (B, prefix + M, D)."""
        tokens, mask = self.enter(tokens, valid)
        for block in self.net.blocks:
            tokens = block(tokens, attn_mask=mask)
        return self.net.norm(tokens)

    def layers(self, tokens: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """What each block makes of tokens (B, M, D), without the class token, each (B, M, D)."""
        tokens, mask = self.enter(tokens, valid)
        outputs = [tokens]
        for block in self.net.blocks:
            outputs.append(block(outputs[-1], attn_mask=mask))
        return [output[:, self.num_prefix_tokens:] for output in outputs[1:]]

    def pooled(self, encoded: Tensor, valid: Tensor | None = None) -> Tensor:
        """Representation (B, D) from what `encode` gave, (B, prefix + M, D), of whose M tokens those ``valid`` exist."""
        return encoded[:, 0] if self.pool == "class" else mean_pool(encoded[:, self.num_prefix_tokens:], valid)

    def patch_valid(self, x: Tensor, length: Tensor | None) -> Tensor | None:
        """None: all patches of a picture exist."""
        return None

    def token_lengths(self, length: Tensor) -> Tensor:
        """All tokens of a picture exist."""
        return torch.full_like(length, self.grid[0] * self.grid[1])

    def tokens(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """One vector per patch, (B, N, D), without the class token."""
        return self.encode(self.embed(x))[:, self.num_prefix_tokens:]

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Pooled representation, (B, D)."""
        return self.pooled(self.encode(self.embed(x)))


class StagedPictures(Staged):
    """A `Staged` net over pictures, whose sides shrink by `stride` in all, rounded up.

    Weights lie channels-last, which convolutions on CPUs and tensor cores want: a training step of the narrow ResNet-18 on a
    CPU takes 0.69 of the time in fp32 and 0.40 in bfloat16 (batch 256, 32 px, one core, 2026-11-24).
    """

    stride: int

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last maps."""
        return -(-height // self.stride), -(-width // self.stride)

    def token_lengths(self, length: Tensor) -> Tensor:
        """All places of a picture exist."""
        rows, cols = self.grid_of(*self.spec.shape[1:])
        return torch.full_like(length, rows * cols)


class ResNet(StagedPictures):
    """A timm ResNet in `net`.

    With ``small_stem=False``, ``width=64`` and ``norm="batch"`` its weights load into plain ``timm.create_model`` and
    back. The last norm of a block starts at one, not at timm's zero, so that every weight learns from the first step.

    Args:
        spec: what a picture looks like.
        name: timm's name.
        small_stem: a 3x3 convolution of stride 1 instead of 7x7 of stride 2, and no max-pooling: for pictures up to 64
            pixels (SimCLR, arXiv 2002.05709, appendix B.9).
        width: channels of the stem and of the first stage; doubled by each further one.
        norm: ``batch`` or ``group`` (8 groups).

    Raises:
        ValueError: unknown norm, a width that 8 groups do not divide, or the name is no ResNet.
    """

    net: Any

    def __init__(self, spec: Spec, *, name: str = "resnet18", small_stem: bool = True, width: int = 64,
                 norm: Norm = "batch") -> None:
        super().__init__()
        if norm == "group" and width % 8:
            raise ValueError(f"norm='group' has 8 groups; width={width} must be a multiple of 8")
        make_norm = norm_layer(norm)
        self.net = net = timm.create_model(name, num_classes=0, in_chans=spec.shape[0], norm_layer=make_norm,
                                           channels=tuple(width << i for i in range(4)), zero_init_last=False)
        if not isinstance(net, TimmResNet):
            raise ValueError(f"name={name!r} is no ResNet of timm; take e.g. resnet18 or resnet50")
        if small_stem:
            self.net.conv1, self.net.maxpool = conv3x3(spec.shape[0], width), nn.Identity()
        elif width != 64:
            self.net.conv1 = nn.Conv2d(spec.shape[0], width, 7, 2, 3, bias=False)
        if width != 64:
            self.net.bn1 = make_norm(width)
            self.narrow(self.net.layer1[0], width)
        self.spec, self.num_features, self.stride = spec, net.num_features, 8 if small_stem else 32
        self.name, self.small_stem, self.standard = name, small_stem, width == 64 and norm == "batch"
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def recipe(self) -> str:
        """Python code that makes this network, still untrained, with timm alone, and says how features are read off it.

        Raises:
            ValueError: a net of another width or norm, which timm cannot make.
        """
        if not self.standard:
            raise ValueError("timm makes no ResNet of this width or norm; export it as ONNX, or train width=64, norm=batch")
        channels = self.spec.shape[0]
        lines = ["import timm", "import torch", "", f"net = timm.create_model({self.name!r}, num_classes=0, in_chans={channels})"]
        if self.small_stem:
            lines += [f"net.conv1 = torch.nn.Conv2d({channels}, 64, 3, 1, 1, bias=False)", "net.maxpool = torch.nn.Identity()"]
        return "\n".join([*lines, "net = net.to(memory_format=torch.channels_last)", "features = net", ""])

    @staticmethod
    def narrow(block: Any, width: int) -> None:
        """Let the first block take ``width`` channels: timm's stem always has 64."""
        def refit(conv: Any) -> nn.Conv2d:
            new = nn.Conv2d(width, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)
            nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
            return new
        block.conv1 = refit(block.conv1)
        if block.expansion == 1:
            block.downsample = None
        else:
            block.downsample[0] = refit(block.downsample[0])

    @property
    def stages(self) -> list[nn.Module]:
        """Stem and the four residual stages."""
        net = self.net
        stem = Stage(net.conv1, net.bn1, net.act1, net.maxpool)
        return [stem, Stage(net.layer1), Stage(net.layer2), Stage(net.layer3), Stage(net.layer4)]


class WideBlock(nn.Module):
    """Pre-activated residual block; ``shared`` (the net's first block) starts its shortcut after the activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs, momentum=0.001), nn.BatchNorm2d(outputs, momentum=0.001)
        self.conv1, self.conv2 = conv3x3(inputs, outputs, stride), conv3x3(outputs, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            nn.init.kaiming_normal_(self.shortcut.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        active = F.leaky_relu(self.norm1(x), 0.1, inplace=True)
        out = self.conv2(F.leaky_relu(self.norm2(self.conv1(active)), 0.1, inplace=True))
        return out + self.shortcut(active if self.shared else x)


class WideResNet(StagedPictures):
    """WRN-depth-widen (arXiv 1605.07146) as FixMatch uses it: LeakyReLU 0.1, pre-activation, BatchNorm momentum 0.001.

    With so small a momentum the running statistics need some thousand steps; judge short runs with care.

    Args:
        spec: what a picture looks like.
        depth: 6 n + 4 layers, n blocks in each of three stages.
        widen: factor on the widths 16, 32, 64.

    Raises:
        ValueError: a depth that is not 6 n + 4.
    """

    stride = 4

    def __init__(self, spec: Spec, *, depth: int = 28, widen: int = 2) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a wide ResNet has 6 n + 4 layers (10, 16, 22, 28, ...), got depth={depth}")
        self.spec, self.num_features = spec, 64 * widen
        self.stem = conv3x3(spec.shape[0], 16)
        blocks, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.groups = nn.ModuleList(nn.Sequential(
            WideBlock(widths[i], widths[i + 1], 2 if i else 1, shared=i == 0),
            *[WideBlock(widths[i + 1], widths[i + 1], 1, shared=False) for _ in range(blocks - 1)]) for i in range(3))
        self.last = nn.Sequential(nn.BatchNorm2d(self.num_features, momentum=0.001), nn.LeakyReLU(0.1, inplace=True))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def stages(self) -> list[nn.Module]:
        """Stem and three groups; the last includes the final norm and activation."""
        return [Stage(self.stem), Stage(self.groups[0]), Stage(self.groups[1]), Stage(self.groups[2], self.last)]


class CifarBlock(nn.Module):
    """Pre-activated residual block whose shortcut has no weights: average pooling and zero channels."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.stride, self.extra = stride, outputs - inputs
        self.residual = nn.Sequential(norm(inputs), nn.ReLU(inplace=True), conv3x3(inputs, outputs, stride),
                                      norm(outputs), nn.ReLU(inplace=True), conv3x3(outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        shortcut = F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
        return F.pad(shortcut, (0, 0, 0, 0, 0, self.extra)) + self.residual(x)


class CifarResNet(StagedPictures):
    """He et al.'s ResNet for CIFAR, 6 n + 2 layers, pre-activated, as test-time training uses it (arXiv 1909.13231).

    Args:
        spec: what a picture looks like.
        blocks: blocks n in each of three stages; 4 make ResNet-26.
        width: channels of the first stage, doubled by each further one.
        norm: ``group`` (8 groups; batches at test time are copies of one picture) or ``batch``.

    Raises:
        ValueError: unknown norm, or a width that 8 groups do not divide.
    """

    stride = 4

    def __init__(self, spec: Spec, *, blocks: int = 1, width: int = 16, norm: Norm = "group") -> None:
        super().__init__()
        if norm == "group" and width % 8:
            raise ValueError(f"norm='group' has 8 groups; width={width} must be a multiple of 8")
        make_norm = norm_layer(norm)
        self.spec, self.num_features = spec, 4 * width
        self.stem = conv3x3(spec.shape[0], width)
        widths = [width, width, 2 * width, 4 * width]
        self.groups = nn.ModuleList(nn.Sequential(
            CifarBlock(widths[i], widths[i + 1], 2 if i else 1, make_norm),
            *[CifarBlock(widths[i + 1], widths[i + 1], 1, make_norm) for _ in range(blocks - 1)]) for i in range(3))
        self.last = nn.Sequential(make_norm(self.num_features), nn.ReLU(inplace=True))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def stages(self) -> list[nn.Module]:
        """Stem and three groups; the last includes the final norm and activation."""
        return [Stage(self.stem), Stage(self.groups[0]), Stage(self.groups[1]), Stage(self.groups[2], self.last)]


class ConvNet(StagedPictures):
    """Three 3x3 convolutions, flattened into a linear layer: the encoder of small studies on 8x8 digits.

    Args:
        spec: what a picture looks like; the linear layer fits this size only.
        widths: channels of the convolutions; all but the first halve the sides.
        num_features: width D of the representation; tokens have the width of the last convolution.
        norm: ``batch`` or ``group`` (8 groups).

    Raises:
        ValueError: unknown norm, or a width that 8 groups do not divide.
    """

    def __init__(self, spec: Spec, *, widths: Sequence[int] = (32, 64, 64), num_features: int = 64,
                 norm: Norm = "batch") -> None:
        super().__init__()
        if norm == "group" and any(width % 8 for width in widths):
            raise ValueError(f"norm='group' has 8 groups; widths={tuple(widths)} must be multiples of 8")
        make_norm = norm_layer(norm)
        self.spec, self.num_features, self.stride = spec, num_features, 2 ** (len(widths) - 1)
        self.convs = nn.ModuleList(
            nn.Sequential(conv3x3(before, after, 2 if i else 1), make_norm(after), nn.ReLU(inplace=True))
            for i, (before, after) in enumerate(zip([spec.shape[0], *widths], widths, strict=False)))
        self.grid = self.grid_of(*spec.shape[1:])
        self.linear = nn.Linear(widths[-1] * self.grid[0] * self.grid[1], num_features)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def stages(self) -> list[nn.Module]:
        """The convolutions."""
        return [Stage(conv) for conv in self.convs]

    def pool(self, maps: Tensor, length: Tensor | None = None) -> Tensor:
        """Flatten maps (B, C, H, W) into the linear layer, (B, D).

        Raises:
            ValueError: the picture had another size than the specification's.
        """
        if tuple(maps.shape[2:]) != self.grid:
            raise ValueError(f"ConvNet was built for pictures of {self.spec.shape}, so maps of {self.grid}, and got "
                             f"maps of {tuple(maps.shape[2:])}; take pictures of one size, or CifarResNet")
        return self.linear(maps.flatten(1))


class PixelEncoder(StagedPictures):
    """3x3 convolutions without norms, then a linear layer, LayerNorm and tanh: the encoder of agents that learn from pixels.

    As policy adaptation during deployment has it (arXiv 2007.04309, official code). Nothing is padded: a border of zeros would
    stand out against a background that is lighter than in training.

    Args:
        spec: what a picture looks like; the linear layer fits this size only.
        layers: convolutions.
        width: their channels.
        num_features: width D of the representation.
        crop: side of the square at the centre that the net sees, None the whole picture; the paper: 84 of 100 pixels. A picture
            that a view moved by no more than is cut off becomes a random crop, with nothing from beyond its border.
        halving: how many convolutions, the first ones, halve the sides; the paper: 1. The fewer places there are in the last
            maps, the less a lighter background, which changes all of them, adds up in the linear layer.

    Raises:
        ValueError: fewer than one layer, or more than the picture has room for.
    """

    def __init__(self, spec: Spec, *, layers: int = 11, width: int = 32, num_features: int = 100, crop: int | None = None,
                 halving: int = 1) -> None:
        super().__init__()
        self.spec, self.num_features, self.strides = spec, num_features, [2 if i < halving else 1 for i in range(layers)]
        self.window = CenterCrop(crop) if crop else nn.Identity()
        self.seen = (crop, crop) if crop else spec.shape[1:]
        self.grid = self.grid_of(*spec.shape[1:])
        if layers < 1 or min(self.grid) < 1:
            raise ValueError(f"layers={layers} must be at least 1 and few enough to leave something of {self.seen[0]}x"
                             f"{self.seen[1]} pixels: each takes 2 off the sides, and the first {halving} halve them")
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width if i else spec.shape[0], width, 3, stride), nn.ReLU(inplace=True))
            for i, stride in enumerate(self.strides))
        self.project = nn.Sequential(nn.Flatten(), nn.Linear(width * self.grid[0] * self.grid[1], num_features),
                                     nn.LayerNorm(num_features), nn.Tanh())
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last maps."""
        height, width = min(height, self.seen[0]), min(width, self.seen[1])
        for stride in self.strides:
            height, width = (height - 3) // stride + 1, (width - 3) // stride + 1
        return height, width

    @property
    def stages(self) -> list[nn.Module]:
        """The convolutions."""
        first, *others = self.convs
        return [Stage(self.window, first), *(Stage(conv) for conv in others)]

    def pool(self, maps: Tensor, length: Tensor | None = None) -> Tensor:
        """Flatten maps (B, C, H, W) into the linear layer, (B, D).

        Raises:
            ValueError: the picture had another size than the specification's.
        """
        if tuple(maps.shape[2:]) != self.grid:
            raise ValueError(f"PixelEncoder was built for pictures of {self.spec.shape}, so maps of {self.grid}, and got "
                             f"maps of {tuple(maps.shape[2:])}; take pictures of one size, or CifarResNet")
        return self.project(maps)
