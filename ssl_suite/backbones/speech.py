"""Backbones for speech waveforms (B, T) at ``spec.rate``. torchaudio is imported when one is built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_suite.backbones import Staged
from ssl_suite.batch import Spec
from ssl_suite.config import require
from ssl_suite.nn.transformer import Count, PatchTransformer, mean_pool, valid_steps

CONV_LAYERS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
"""Kernel and stride of each convolution of wav2vec 2.0's front-end: one frame per 320 samples, each seeing 400."""


class LogMel(nn.Module):
    """Log-mel energies, 25 ms windows every 10 ms, brought to zero mean and unit variance over each utterance.

    One mean and one deviation per utterance, over its valid frames and all bands: loudness goes, the spectrum's shape
    stays. A frame lies wholly inside the utterance, so what follows its end never changes it. Always float32.

    Args:
        spec: what a waveform looks like; its rate counts.
        n_mels: number of bands.

    Raises:
        ValueError: no sampling rate.
    """

    def __init__(self, spec: Spec, n_mels: int = 64) -> None:
        super().__init__()
        rate = spec.rate
        if rate < 1000:
            raise ValueError(f"log-mel energies need the sampling rate, got spec.rate={rate}; set it in the data")
        transforms = require("torchaudio.transforms", extra="speech")
        self.window, self.hop, self.n_mels = rate // 40, rate // 100, n_mels
        n_fft = 2 ** math.ceil(math.log2(self.window))
        self.margin = ((n_fft - self.window) // 2, (n_fft - self.window + 1) // 2)
        self.mel = transforms.MelSpectrogram(rate, n_fft=n_fft, win_length=self.window, hop_length=self.hop,
                                             n_mels=n_mels, center=False)

    def frame_lengths(self, length: Tensor) -> Tensor:
        """Frames of rows with ``length`` (B,) valid samples."""
        return self.frames(length).clamp_min(0)

    def frames(self, length: Count) -> Count:
        """Frames of so many samples."""
        return (length - self.window) // self.hop + 1

    def power(self, x: Tensor) -> Tensor:
        """Power spectrum (B, n_fft / 2 + 1, frames) of waveforms (B, T); torchaudio's own code would break a compiled graph."""
        of = self.mel.spectrogram
        spectrum = torch.stft(x, of.n_fft, of.hop_length, of.win_length, of.window, center=False, return_complex=True)
        return spectrum.abs().square()

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Map waveforms (B, T) to (B, n_mels, frames), zero past the end of each row.

        Raises:
            ValueError: the waveform is shorter than one window.
        """
        if x.shape[-1] < self.window:
            raise ValueError(f"a waveform of {x.shape[-1]} samples is shorter than one window of {self.window}; "
                             f"drop or pad such samples")
        with torch.autocast(x.device.type, enabled=False):
            mel = (self.mel.mel_scale(self.power(F.pad(x.float(), self.margin))) + 1e-6).log()
            valid = valid_steps(None if length is None else self.frame_lengths(length), mel.shape[-1])
            valid = torch.ones_like(mel[:, 0], dtype=torch.bool) if valid is None else valid
            count = (valid.sum(dim=1) * self.n_mels).clamp_min(1)[:, None, None]
            centred = (mel - (mel * valid[:, None]).sum(dim=(1, 2), keepdim=True) / count) * valid[:, None]
            return centred / (centred.square().sum(dim=(1, 2), keepdim=True) / count + 1e-5).sqrt()


class SpeechTransformer(PatchTransformer):
    """A transformer over patches of all mel bands times a few frames.

    Args:
        spec: what a waveform looks like.
        n_mels: number of mel bands.
        patch_frames: frames (10 ms) of a patch.
        width: width D of a token.
        depth: number of blocks.
        heads: attention heads.
    """

    def __init__(self, spec: Spec, *, n_mels: int = 64, patch_frames: int = 4, width: int = 128, depth: int = 4,
                 heads: int = 4) -> None:
        log_mel = LogMel(spec, n_mels)
        patches = -(-max(1, log_mel.frames(spec.shape[0])) // patch_frames)
        super().__init__(spec, max_patches=patches, patch_dim=n_mels * patch_frames, width=width, depth=depth,
                         heads=heads)
        self.log_mel, self.patch_frames = log_mel, patch_frames

    def resized(self, width: int, depth: int) -> SpeechTransformer:
        """An untrained net of the same kind, of another width and depth; heads keep their width."""
        return SpeechTransformer(self.spec, n_mels=self.log_mel.n_mels, patch_frames=self.patch_frames, width=width, depth=depth,
                                 heads=self.heads_of(width))

    def count(self, length: Count) -> Count:
        """Patches of so many samples, the last perhaps partly filled."""
        frames = self.log_mel.frames(length)
        return (frames + self.patch_frames - 1) // self.patch_frames

    def patches(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Log-mel energies of the patches, (B, N, n_mels * patch_frames): band, then frame."""
        mel = self.log_mel(x, length)
        mel = F.pad(mel, (0, -mel.shape[-1] % self.patch_frames))
        return mel.unflatten(2, (-1, self.patch_frames)).transpose(1, 2).flatten(2)


class SpeechStage(nn.Module):
    """A 3x3 convolution of stride 2 over (band, time), norm and ReLU; zero where a row has ended.

    Args:
        inputs: channels before.
        outputs: channels after.
        log_mel: turns the waveform into a picture; for the first stage.
        window: samples of a frame's window.
        hop: samples between frames.
        stride: frames per step of this stage's output.
        norm: ``batch`` or ``layer`` (over the channels of a place, blind to the batch and to padding).
    """

    def __init__(self, inputs: int, outputs: int, *, log_mel: LogMel | None, window: int, hop: int, stride: int,
                 norm: Literal["batch", "layer"]) -> None:
        super().__init__()
        self.log_mel, self.window, self.hop, self.stride = log_mel, window, hop, stride
        self.conv = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs) if norm == "batch" else PlaceNorm(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor, length: Tensor | None = None) -> Tensor:
        """Map (B, C, bands, frames), or the waveform (B, T), to (B, C', bands / 2, frames / 2)."""
        if self.log_mel is not None:
            maps = self.log_mel(maps, length).unsqueeze(1)
        maps = F.relu(self.norm(self.conv(maps)))
        valid = None if length is None else valid_steps(self.steps(length), maps.shape[-1])
        return maps if valid is None else maps.masked_fill(~valid[:, None, None], 0.0)

    def steps(self, length: Tensor) -> Tensor:
        """Valid steps of the output for rows with ``length`` (B,) samples."""
        frames = ((length - self.window) // self.hop + 1).clamp_min(0)
        return (frames + self.stride - 1) // self.stride


class PlaceNorm(nn.LayerNorm):
    """LayerNorm over the channels of each place of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SpeechConvNet(Staged):
    """Log-mel energies as a picture, 2-D convolutions of stride 2, a linear layer over the bands, averaged over time.

    Which band a sound lies in says what it is, so bands are never averaged; time counts as far as it exists. In training,
    BatchNorm counts the places past the end of shorter rows.

    Args:
        spec: what a waveform looks like.
        n_mels: number of mel bands.
        widths: channels of the convolutions; the last is also the width D of the representation.
        norm: ``batch``, or ``layer`` over the channels of a place.

    Raises:
        ValueError: unknown norm.
    """

    def __init__(self, spec: Spec, *, n_mels: int = 64, widths: Sequence[int] = (32, 64, 128),
                 norm: Literal["batch", "layer"] = "batch") -> None:
        super().__init__()
        if norm not in ("batch", "layer"):
            raise ValueError(f"norm must be 'batch' or 'layer', got {norm!r}")
        self.spec, self.num_features = spec, widths[-1]
        log_mel = LogMel(spec, n_mels)
        self.convs = nn.ModuleList(
            SpeechStage(before, after, log_mel=None if i else log_mel, window=log_mel.window, hop=log_mel.hop,
                        stride=2 ** (i + 1), norm=norm)
            for i, (before, after) in enumerate(zip([1, *widths], widths, strict=False)))
        bands = n_mels
        for _ in widths:
            bands = -(-bands // 2)
        self.linear = nn.Linear(widths[-1] * bands, self.num_features)

    @property
    def stages(self) -> list[nn.Module]:
        """The convolutions; the first takes the waveform."""
        return list(self.convs)

    def token_lengths(self, length: Tensor) -> Tensor:
        """Valid time steps of the last maps for rows with ``length`` (B,) samples."""
        last: Any = self.convs[-1]
        return last.steps(length)

    def pool(self, maps: Tensor, length: Tensor | None = None) -> Tensor:
        """Linear layer over the bands of maps (B, D, bands, N), mean over the valid steps, as (B, D)."""
        valid = None if length is None else valid_steps(self.token_lengths(length), maps.shape[-1])
        return mean_pool(self.steps(maps), valid)

    def steps(self, maps: Tensor) -> Tensor:
        """The linear layer at each step of maps (B, D, bands, N), as (B, N, D)."""
        return self.linear(maps.permute(0, 3, 1, 2).flatten(2))

    def tokens(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """One vector per time step, (B, N, D)."""
        return self.steps(self.maps(x, length))


class Wav2Vec2(nn.Module):
    """The network of wav2vec 2.0 and HuBERT (arXiv 2006.11477, 2106.07447): a torchaudio ``Wav2Vec2Model`` in `net`.

    Defaults are the Base size. Its weights load into ``torchaudio.models.wav2vec2_model`` and back. Cut in three, so
    that a method may mask in between: `extract` (convolutions), `project` (LayerNorm, linear, dropout), `contextualise`
    (position, transformer).

    torchaudio starts this model with PyTorch's defaults; here linear weights start at N(0, 0.02), convolutions by
    Kaiming's rule, the position convolution at N(0, sqrt(4 / (kernel * width))), as fairseq does.

    With ``extractor_mode="group_norm"`` statistics run over the whole padded row, so a sample's features depend on how
    far it was padded: give it crops of one length or one sample at a time, or use ``layer_norm``.

    The published front-end is made for 16000 samples per second; at another rate a frame still has 320 samples.

    Args:
        spec: what a waveform looks like.
        extractor_mode: ``group_norm`` (Base) or ``layer_norm`` (Large, and anything padded).
        conv_channels: channels of the front-end.
        conv_layers: kernel and stride of each of its convolutions.
        conv_bias: biases in the front-end (Large).
        width: width D of the transformer.
        depth: number of layers.
        heads: attention heads.
        hidden: hidden width of the feed-forward layers; 4 D by default.
        position_kernel: frames of the position convolution.
        position_groups: its groups.
        dropout: on projected features, attention and layer outputs.
        activation_dropout: inside the feed-forward layers.
        layerdrop: chance that what a layer says is left out in training. It is computed all the same, so that nothing waits.
        pre_norm: norm before each part (Large) instead of after.
    """

    net: Any

    def __init__(self, spec: Spec, *, extractor_mode: Literal["group_norm", "layer_norm"] = "group_norm",
                 conv_channels: int = 512, conv_layers: Sequence[tuple[int, int]] = CONV_LAYERS,
                 conv_bias: bool = False, width: int = 768, depth: int = 12, heads: int = 12,
                 hidden: int | None = None, position_kernel: int = 128, position_groups: int = 16, dropout: float = 0.1,
                 activation_dropout: float = 0.0, layerdrop: float = 0.05, pre_norm: bool = False) -> None:
        super().__init__()
        self.spec, self.num_features, self.conv_features, self.layerdrop = spec, width, conv_channels, layerdrop
        self.conv_layers = tuple((kernel, stride) for kernel, stride in conv_layers)
        self.made: dict[str, Any] = {
            "extractor_mode": extractor_mode, "extractor_conv_bias": conv_bias,
            "extractor_conv_layer_config": [(conv_channels, kernel, stride) for kernel, stride in self.conv_layers],
            "encoder_embed_dim": width, "encoder_num_layers": depth, "encoder_num_heads": heads,
            "encoder_pos_conv_kernel": position_kernel, "encoder_pos_conv_groups": position_groups,
            "encoder_ff_interm_features": hidden or 4 * width, "encoder_ff_interm_dropout": activation_dropout,
            "encoder_projection_dropout": dropout, "encoder_attention_dropout": dropout, "encoder_dropout": dropout,
            "encoder_layer_norm_first": pre_norm, "encoder_layer_drop": layerdrop, "aux_num_out": None}
        self.net = require("torchaudio.models", extra="speech").wav2vec2_model(**self.made)
        self.initialise()

    def recipe(self) -> str:
        """Python code that makes this network, still untrained, with torchaudio alone, and says how features are read off it."""
        return ("import torchaudio\n\n"
                f"net = torchaudio.models.wav2vec2_model(**{self.made!r})\n\n\n"
                "def features(x):\n    return net.extract_features(x)[0][-1].mean(dim=1)\n")

    def initialise(self) -> None:
        """Weights as fairseq starts them."""
        for module in self.net.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for layer in self.net.feature_extractor.conv_layers:
            nn.init.kaiming_normal_(layer.conv.weight)
        conv = self.net.encoder.transformer.pos_conv_embed.conv
        # Weight-norm computes this weight: writing into it would change nothing, assigning sets norm and direction.
        conv.weight = torch.randn_like(conv.weight) * math.sqrt(4.0 / (conv.kernel_size[0] * conv.out_channels))
        nn.init.zeros_(conv.bias)

    @property
    def frontend(self) -> nn.Module:
        """The convolutions and the projection of their features: what lies below the transformer."""
        return nn.ModuleList([self.net.feature_extractor, self.net.encoder.feature_projection])

    @property
    def receptive_field(self) -> int:
        """Samples that one frame of the front-end sees; 400 as published."""
        field = 1
        for kernel, stride in reversed(self.conv_layers):
            field = (field - 1) * stride + kernel
        return field

    def token_lengths(self, length: Tensor) -> Tensor:
        """Frames of rows with ``length`` (B,) samples: floor((n - kernel) / stride) + 1 per convolution."""
        for kernel, stride in self.conv_layers:
            length = torch.div(length - kernel, stride, rounding_mode="floor") + 1
        return length.clamp_min(0)

    def extract(self, x: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Convolutional features.

        Args:
            x: waveforms (B, T).
            length: valid samples (B,).

        Returns:
            Features before any LayerNorm (B, T', C) and valid frames (B,), or None without ``length``.

        Raises:
            ValueError: the waveforms are shorter than one frame.
        """
        if x.shape[-1] < self.receptive_field:
            raise ValueError(f"a waveform of {x.shape[-1]} samples is shorter than one frame of "
                             f"{self.receptive_field}; drop or pad such samples")
        z, _ = self.net.feature_extractor(x, None)
        return z, None if length is None else self.token_lengths(length)

    def project(self, z: Tensor) -> Tensor:
        """LayerNorm, linear layer and dropout: (B, T', C) to (B, T', D)."""
        return self.net.encoder.feature_projection(z)

    def contextualise(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Position convolution and transformer over features (B, T', D), of which ``lengths`` (B,) frames exist."""
        steps = features.shape[1]
        valid = valid_steps(None if lengths is None else lengths.clamp_min(1), steps)
        if valid is None:
            return self.layers(features)
        features = features.masked_fill(~valid.unsqueeze(-1), 0.0)
        return self.layers(features, valid[:, None, None].expand(-1, 1, steps, -1))

    def layers(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Position convolution and layers; torchaudio draws on the host which layers are left out, here the device does."""
        stack = self.net.encoder.transformer
        x = stack._preprocess(x)
        for layer in stack.layers:
            y, _ = layer(x, mask)
            x = torch.where(torch.rand((), device=x.device) < self.layerdrop, x, y) if self.training and self.layerdrop else y
        return x if stack.layer_norm_first else stack.layer_norm(x)

    def tokens(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """One vector per frame, (B, T', D); meaningless past `token_lengths`."""
        z, lengths = self.extract(x, length)
        return self.contextualise(self.project(z), lengths)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Mean of the frames that exist, (B, D)."""
        tokens = self.tokens(x, length)
        return mean_pool(tokens, valid_steps(None if length is None else self.token_lengths(length), tokens.shape[1]))
