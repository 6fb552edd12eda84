"""Test-time training with a masked autoencoder: rebuild hidden patches of the sample that is to be predicted.

Idea: as `ttt`, with a pretext task that needs no orientation, and so serves pictures, speech and time series alike.

Paper: Gandelsman et al., "Test-Time Training with Masked Autoencoders", NeurIPS 2022, arXiv 2209.07522. At test time,
copies of one sample with a mask each; normalised patch error; SGD with momentum; the encoder learns, the decoder does
not.

Deviations: encoder, decoder and classifier are trained together from the start (start the encoder from a pre-trained
one with ``init_from``); the paper freezes a pre-trained encoder and trains a transformer as classifier ("ViT probing").

Batch: ``x`` (B, ...), ``y`` (B,), ``index`` (B,), with ``epoch`` and ``length`` (B,) where present.

Known limits: as `ttt`; needs a backbone that works on patches.
"""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor, nn

from ssl_suite.batch import Backbone, Tags
from ssl_suite.functional.random import Draw
from ssl_suite.method import Method, Training
from ssl_suite.methods.adaptation.ttt import TestTimeTraining
from ssl_suite.methods.pretraining.mae import reconstruct
from ssl_suite.nn.decoder import TransformerDecoder
from ssl_suite.views import Views


class Rebuilding(nn.Module):
    """The self-supervised head: a decoder that rebuilds hidden patches.

    Args:
        backbone: a patch transformer.
        mask_ratio: share of hidden tokens, in [0, 1).
        width: width of the decoder, divisible by 32.
        depth: blocks of the decoder.
    """

    figure = "ssl_loss"

    def __init__(self, backbone: Any, mask_ratio: float, width: int, depth: int) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        self.decoder = TransformerDecoder(backbone.num_features, width, depth, backbone.patch_dim, backbone.grid)

    def forward(self, backbone: Any, x: Tensor, draw: Draw, length: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean squared error of the hidden normalised patches, twice: the loss and the figure to report."""
        loss = reconstruct(backbone, self.decoder, x, draw, self.mask_ratio, length=length).loss
        return loss, loss.detach()

    def learning(self, backbone: Backbone) -> list[nn.Parameter]:
        """What learns at test time: the encoder."""
        return list(backbone.parameters())


class TestTimeTrainingMAE(TestTimeTraining):
    """Joint training of a classifier and a masked autoencoder on one encoder.

    Args:
        backbone: a patch transformer.
        views: kind ``weak`` is used for both tasks.
        num_classes: number of classes.
        ssl_weight: weight of the reconstruction loss.
        mask_ratio: share of hidden tokens, in [0, 1).
        decoder_width: width of the decoder, divisible by 32.
        decoder_depth: blocks of the decoder.
        training: optimizer and schedule; see `Method`.
    """

    tags = Tags("Gandelsman et al., NeurIPS 2022, arXiv 2209.07522", "adaptation", batch="labeled", target="class",
                backbone="tokens", views=("weak",))

    def __init__(self, backbone: Backbone, views: Views, *, num_classes: int, ssl_weight: float = 1.0,
                 mask_ratio: float = 0.75, decoder_width: int = 128, decoder_depth: int = 2,
                 **training: Unpack[Training]) -> None:
        Method.__init__(self, backbone, views, **training)
        self.head = nn.Linear(backbone.num_features, num_classes)
        self.pretext = Rebuilding(backbone, mask_ratio, decoder_width, decoder_depth)
        self.ssl_weight = ssl_weight
