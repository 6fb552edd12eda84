"""MAE against plain loops, against lightly's tools, and by perturbation."""

from __future__ import annotations

import pytest
import torch
from lightly.models import utils
from torch import Tensor, nn

from ssl_suite.backbones.images import ViT
from ssl_suite.backbones.series import SeriesTransformer
from ssl_suite.batch import Batch, Spec
from ssl_suite.functional.random import Draw
from ssl_suite.methods.pretraining.mae import MAE, reconstruct
from ssl_suite.nn.decoder import TransformerDecoder
from ssl_suite.testing import tiny_batch, tiny_views

PICTURES = Spec("images", (1, 8, 8), mean=(0.5,), std=(0.25,))
SERIES = Spec("series", (2, 40), mean=(0.0, 0.0), std=(1.0, 1.0))


def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(PICTURES, patch_size=2, width=32, depth=2, heads=2).eval()


def series() -> SeriesTransformer:
    torch.manual_seed(0)
    return SeriesTransformer(SERIES, patch=4, width=32, depth=2, heads=2).eval()


def draw(n: int) -> Draw:
    return Draw(torch.arange(n) * 31 + 5)


def decoder(backbone: nn.Module) -> TransformerDecoder:
    torch.manual_seed(1)
    return TransformerDecoder(backbone.num_features, 32, 1, backbone.patch_dim, backbone.grid).eval()


def pictures(n: int = 6) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", [True, False])
def test_loss_is_the_official_loop(norm: bool) -> None:
    backbone = vit()
    done = reconstruct(backbone, decoder(backbone), pictures(), draw(6), 0.75, norm)
    total = count = 0.0
    for b in range(6):
        for i in range(16):
            target = pictures()[b, :, 2 * (i // 4):2 * (i // 4) + 2, 2 * (i % 4):2 * (i % 4) + 2].flatten()
            if norm:
                target = (target - target.mean()) / (target.var() + 1e-6) ** 0.5
            torch.testing.assert_close(done.target[b, i], target)
            if done.mask[b, i]:
                total += ((done.prediction[b, i] - target) ** 2).mean().item()
                count += 1
    assert done.loss.item() == pytest.approx(total / count, rel=1e-5)


def test_patches_are_lightlys_up_to_the_order_of_pixels() -> None:
    x = torch.randn(2, 3, 8, 8)
    backbone = ViT(Spec("images", (3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3), patch_size=2, width=32, depth=1, heads=2)
    theirs = utils.patchify(x, 2).view(2, 16, 4, 3).transpose(2, 3).flatten(2)
    torch.testing.assert_close(backbone.patches(x), theirs)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 12), (0.5, 8), (0.9, 15), (0.0, 0)])
def test_the_mask_ratio_is_exact(ratio: float, hidden: int) -> None:
    backbone = vit()
    done = reconstruct(backbone, decoder(backbone), pictures(), draw(6), ratio)
    assert (done.mask.sum(1) == hidden).all()
    if hidden:
        assert len(done.mask.float().unique(dim=0)) == 6, "every sample has a mask of its own"


def test_hidden_patches_never_reach_the_encoder() -> None:
    backbone, x = vit(), pictures()
    base = reconstruct(backbone, decoder(backbone), x, draw(6), 0.75)
    pixels = base.mask.view(6, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    changed = reconstruct(backbone, decoder(backbone), torch.where(pixels, torch.randn_like(x) * 9, x), draw(6), 0.75)
    assert torch.equal(changed.prediction, base.prediction)
    assert not torch.equal(changed.target, base.target)
    control = reconstruct(backbone, decoder(backbone), torch.where(pixels, x, torch.randn_like(x) * 9), draw(6), 0.75)
    assert not torch.allclose(control.prediction, base.prediction, atol=1e-3), "the control: visible patches do"


def test_gradient_reaches_visible_pixels_only() -> None:
    backbone, x = vit(), pictures().requires_grad_()
    done = reconstruct(backbone, decoder(backbone), x, draw(6), 0.75)
    done.prediction.square().sum().backward()
    assert x.grad is not None
    touched = backbone.patches(x.grad).abs().sum(-1) > 0
    assert torch.equal(touched, ~done.mask)


def test_the_decoder_puts_every_token_in_its_place() -> None:
    """The order in which visible tokens arrive changes nothing; where they say they stand does."""
    backbone = vit()
    net = decoder(backbone)
    tokens = torch.randn(2, 4, 32)
    kept = torch.tensor([[3, 0, 9, 15], [1, 2, 8, 4]])
    out = net(tokens, kept, 16, None, None)
    order = torch.tensor([2, 3, 0, 1])
    torch.testing.assert_close(net(tokens[:, order], kept[:, order], 16, None, None), out)
    assert not torch.allclose(net(tokens[:, order], kept, 16, None, None), out, atol=1e-3)


def test_a_trained_decoder_rebuilds_each_patch_at_its_own_place() -> None:
    """Pictures whose patch i has the value i: positions alone suffice, so the error must vanish."""
    torch.manual_seed(0)
    backbone = ViT(PICTURES, patch_size=2, width=32, depth=1, heads=2)
    net = decoder(backbone).train()
    x = (torch.arange(16.0) / 8 - 1).view(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3).expand(8, -1, -1, -1)
    optimizer = torch.optim.Adam([*backbone.parameters(), *net.parameters()], lr=5e-3)
    for step in range(150):
        done = reconstruct(backbone, net, x, Draw(torch.arange(8) + 100 * step), 0.75, norm_targets=False)
        optimizer.zero_grad()
        done.loss.backward()
        optimizer.step()
    assert done.loss < 0.02, f"{done.loss.item()} of a variance of 0.33"


def test_padding_is_neither_seen_nor_rebuilt() -> None:
    backbone = series()
    x = torch.randn(4, 2, 40, generator=torch.Generator().manual_seed(0))
    length = torch.tensor([40, 20, 9, 3])
    x = x * (torch.arange(40) < length[:, None, None])
    done = reconstruct(backbone, decoder(backbone), x, draw(4), 0.75, length=length)
    tokens = backbone.token_lengths(length)
    assert done.valid is not None
    assert torch.equal(done.valid.sum(1), tokens)
    assert not (done.mask & ~done.valid).any()
    shown = (done.valid & ~done.mask).sum(1)
    assert torch.equal(shown, (tokens * 0.25).long().clamp_min(1))
    dirty = torch.where(torch.arange(40) < length[:, None, None], x, torch.full_like(x, 50.0))
    again = reconstruct(backbone, decoder(backbone), dirty, draw(4), 0.75, length=length)
    whole = length % 4 == 0
    torch.testing.assert_close(again.prediction[whole][done.valid[whole]], done.prediction[whole][done.valid[whole]])


def test_the_method_is_the_function_with_its_own_draws() -> None:
    torch.manual_seed(0)
    views = tiny_views(PICTURES)
    method = MAE(vit(), views, view="clean", decoder_width=32, decoder_depth=1).eval()
    batch: Batch = tiny_batch(PICTURES, 6)
    (x,) = views(batch, "clean")
    expected = reconstruct(method.backbone, method.decoder, x, views.draw(batch, 100), 0.75, True)
    assert torch.equal(method.step(batch).loss, expected.loss)
    other = method.step({**batch, "epoch": batch["epoch"] + 1}).loss
    assert other != expected.loss, "a new epoch draws new masks"
    with pytest.raises(ValueError, match="mask_ratio"):
        MAE(vit(), views, mask_ratio=1.0)
