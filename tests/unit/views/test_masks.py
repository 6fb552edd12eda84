"""Pictures and masks move together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ssl_suite.functional.segmentation import IGNORE, VOID
from ssl_suite.views import Views
from ssl_suite.views.images import Affine, ColorJitter, Cutout, GaussianBlur, RandAugment, RandomResizedCrop, Shift

MOVES = {
    "shift": Shift(0.25, flip=0.5), "affine": Affine(rotation=90, translate=0.2, scale=(0.6, 1.4), shear=10, flip=0.5),
    "reflected": Affine(rotation=30, translate=0.3, padding="reflection"), "crop": RandomResizedCrop((0.3, 1.0), flip=0.5),
    "small": RandomResizedCrop((0.5, 1.0), flip=0.5, size=0.5),
}


def batch(n: int = 16, h: int = 24, w: int = 30) -> dict[str, Tensor]:
    """Patches of classes 1 to 4, whose grey level is 50 times the class; 0 is seen outside only."""
    patches = torch.randint(1, 5, (n, h // 6, w // 6), generator=torch.Generator().manual_seed(0))
    mask = patches.repeat_interleave(6, 1).repeat_interleave(6, 2).to(torch.uint8)
    return {"x": mask[:, None] * 50, "y": mask, "index": torch.arange(n), "epoch": torch.zeros(n, dtype=torch.int64)}


@pytest.mark.parametrize("name", MOVES)
def test_a_mask_goes_where_its_picture_goes(name: str):
    views = Views({"weak": [MOVES[name]]})
    x, y = views.paired(batch(), "weak")
    assert y.shape == (len(x), *x.shape[2:])
    levels = x[:, 0] * 255 / 50
    inside = y != IGNORE
    near = (levels - y).abs() < 0.3
    assert near[inside].float().mean() > (0.999 if name == "shift" else 0.6)      # edges of patches are blended
    assert ((levels - y).abs() < 2.5)[inside].float().mean() > 0.97
    assert (levels[~inside] < 3.0).all()                                         # blended with the black outside at most
    assert (~inside).any() == (name == "affine")
    torch.testing.assert_close(x, views(batch(), "weak")[0])                     # the picture is that of the plain view


def test_exact_turns_are_exact():
    data = batch(4, 24, 24)
    quarter = Affine()
    quarter.place = lambda draw, h, w: (torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).expand(len(draw), 2, 2), torch.zeros(len(draw), 2))
    x, y = Views({"weak": [quarter]}).paired(data, "weak")
    assert torch.equal(y.to(torch.uint8), (x[:, 0] * 255 / 50).round().to(torch.uint8))
    assert any(torch.equal(y, torch.rot90(data["y"].long(), k, (1, 2))) for k in (1, 3))


def test_strong_shows_the_same_place_as_weak():
    views = Views({"weak": [MOVES["affine"]], "strong": [ColorJitter(0.5, 0.5), GaussianBlur(5, (0.5, 1.0), 1.0)]})
    weak, y = views.paired(batch(), "weak")
    strong, again = views.paired(batch(), "weak", "strong")
    assert torch.equal(y, again)
    assert not torch.equal(weak, strong)
    later = {**batch(), "epoch": torch.ones(16, dtype=torch.int64)}
    assert not torch.equal(views.paired(later, "weak")[1], y)


def test_what_is_hidden_is_not_learnt():
    data = batch()
    data["y"][:, 0] = VOID
    x, y = Views({"strong": [Cutout(0.5, fill=0.0)]}).paired(data, "strong")
    assert (y[:, 0] == IGNORE).all()
    assert torch.equal(y[:, 1:] == IGNORE, x[:, 0, 1:] == 0.0)
    assert (y[:, 1:] == IGNORE).any(2).any(1).all()


def test_without_masks_the_target_says_what_lies_inside():
    data = batch()
    views = Views({"weak": [MOVES["affine"]]})
    known = views.paired(data, "weak")[1]
    del data["y"]
    assert torch.equal(views.paired(data, "weak")[1], torch.where(known == IGNORE, IGNORE, 0))


def test_an_operation_that_is_silent_about_masks_is_refused():
    with pytest.raises(ValueError, match=r"'weak' holds RandAugment.*data\.views\.kinds\.weak"):
        Views({"weak": [RandAugment()]}).paired(batch(), "weak")
    with pytest.raises(KeyError, match="no view 'strong'"):
        Views().paired(batch(), "strong")


def test_a_crop_of_a_mask_equals_torchvisions():
    crop, data = RandomResizedCrop((0.3, 1.0), flip=0.0), batch(8)
    views = Views({"weak": [crop]})
    windows = crop.windows(views.draw(data, 0), 24, 30)
    expected = torch.stack([tv.resized_crop(data["y"][i][None], *(int(v[i]) for v in windows), [24, 30],
                                            tv.InterpolationMode.NEAREST_EXACT)[0] for i in range(8)])
    assert torch.equal(views.paired(data, "weak")[1].to(torch.uint8), expected)
