"""FixMatch for masks against its losses written out pixel by pixel."""

from __future__ import annotations

import copy

import pytest
import torch

from ssl_suite.batch import Batch
from ssl_suite.functional.mixing import cutmix_boxes
from ssl_suite.functional.segmentation import IGNORE
from ssl_suite.methods.self_training.fixmatch_segmentation import BOXES, FixMatchSegmentation
from ssl_suite.methods.self_training.policies import (
    UDA,
    AdaMatch,
    Dash,
    EntropyPercentile,
    FixedThreshold,
    FlexMatch,
    FreeMatch,
    Policy,
    SoftMatch,
)
from ssl_suite.methods.supervised.segmentation import Segmenter
from ssl_suite.testing import tiny_backbone, tiny_batch, tiny_spec
from ssl_suite.views import Views
from ssl_suite.views.images import Affine, Brightness, GaussianNoise
from tests.parity.tiny import gradients

SPEC = tiny_spec("images", target="mask")
VIEWS = Views({"weak": [Affine(rotation=60, translate=0.2, flip=0.5)], "strong": [Brightness(0.5, 1.0), GaussianNoise(0.1)]})


def make(policy: Policy | None = None, **given) -> FixMatchSegmentation:
    torch.manual_seed(0)
    method = FixMatchSegmentation(tiny_backbone("maps", SPEC), copy.deepcopy(VIEWS).standardise(SPEC), num_classes=3,
                                  policy=policy or FixedThreshold(0.5), **given)
    with torch.no_grad():
        method.head.weight.mul_(3.0)  # confidences on both sides of the threshold
    return method


def batch(pseudo: bool = False) -> Batch:
    whole = {"labeled": tiny_batch(SPEC, 4), "unlabeled": tiny_batch(SPEC, 6, 100, labels=False)}
    if pseudo:
        whole["unlabeled"]["pseudo"] = torch.randint(0, 3, (6, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
        whole["unlabeled"]["pseudo"][0] = 255  # a picture that no one guessed
    return whole


def entropy_of_true(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """-log p of the classes, averaged pixel by pixel over those that count."""
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    losses = [-log_p[i, y[i, r, c], r, c] for i, r, c in torch.cartesian_prod(*map(torch.arange, y.shape)) if y[i, r, c] != IGNORE]
    return sum(losses) / len(losses)


def written_out(method: FixMatchSegmentation, given: Batch, lambda_u: float) -> torch.Tensor:
    """The mean of the terms; all rows but the strong ones of the consistency share a forward."""
    x, y = method.views.paired(given["labeled"], "weak")
    unlabeled = {key: value for key, value in given["unlabeled"].items() if key != "pseudo"}
    weak, _ = method.views.paired(unlabeled, "weak")
    strong, inside = method.views.paired(unlabeled, "weak", "strong")
    taught = strong if "pseudo" in given["unlabeled"] else strong[:0]
    logits, guess, learnt = method.head(method.backbone.maps(torch.cat([x, weak, taught])), x).split([4, 6, len(taught)])
    guess = guess.detach().softmax(1)
    terms = [entropy_of_true(logits, y)]
    if "pseudo" in given["unlabeled"]:
        target = method.views.paired({**unlabeled, "y": given["unlabeled"]["pseudo"]}, "weak")[1]
        terms.append(entropy_of_true(learnt, target))
    box = cutmix_boxes(method.views.draw(unlabeled, BOXES), 8, 8)
    assert box.any()
    other = [1, 0, 3, 2, 5, 4]
    mixed = torch.where(box[:, None], strong[other], strong)
    guess, inside = torch.where(box[:, None], guess[other], guess), torch.where(box, inside[other], inside)
    log_p = method.predict(mixed).log_softmax(1)
    total, count = 0.0, 0
    for i, r, c in torch.cartesian_prod(torch.arange(6), torch.arange(8), torch.arange(8)):
        if inside[i, r, c] != IGNORE:
            count += 1
            if guess[i, :, r, c].max() >= 0.5:
                total = total - log_p[i, guess[i, :, r, c].argmax(), r, c]
    assert 0 < count < 6 * 64
    return sum([*terms, lambda_u * total / count]) / (len(terms) + 1)


@pytest.mark.parametrize("pseudo", [False, True])
def test_value_and_gradient_equal_the_formula(pseudo: bool):
    method, given = make(lambda_u=0.7), batch(pseudo)
    twin = copy.deepcopy(method)
    out, expected = method.step(given), written_out(twin, given, 0.7)
    assert 0.0 < out.logs["mask_ratio"] < 1.0
    assert ("loss_pseudo" in out.logs) is pseudo
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    expected.backward()
    theirs = gradients(twin)
    for name, grad in gradients(method).items():
        torch.testing.assert_close(grad, theirs[name], atol=1e-5, rtol=1e-4)


def test_without_consistency_and_pseudo_masks_it_is_supervised_training():
    method, given = make(lambda_u=0.0), batch()
    torch.manual_seed(0)
    plain = Segmenter(tiny_backbone("maps", SPEC), copy.deepcopy(VIEWS).standardise(SPEC), num_classes=3)
    plain.load_state_dict(method.state_dict())
    assert torch.equal(method.step(given).loss, plain.step(given["labeled"]).loss)


def test_self_training_learns_every_pixel_and_consistency_the_sure_ones():
    given = batch(pseudo=True)
    alone, both = make(FixedThreshold(0.999), lambda_u=0.0).step(given), make(FixedThreshold(0.999)).step(given)
    assert "mask_ratio" not in alone.logs
    torch.testing.assert_close(alone.loss, (alone.logs["loss_sup"] + alone.logs["loss_pseudo"]) / 2)
    assert both.logs["mask_ratio"] < 0.5
    assert alone.logs["loss_pseudo"] > 0.0


def test_true_masks_of_unlabelled_pictures_are_not_looked_at():
    given = batch()
    plain = make().step(given).loss
    given["unlabeled"]["y"] = torch.zeros(6, 8, 8, dtype=torch.uint8)
    assert torch.equal(plain, make().step(given).loss)


@pytest.mark.parametrize("policy", [UDA(0.4), FreeMatch(3), EntropyPercentile(), SoftMatch(3), AdaMatch(3), Dash(1, 1)])
@pytest.mark.parametrize("mix", ["cutmix", "classmix", "none"])
def test_policies_judge_pixels(policy: Policy, mix: str):
    method = make(policy, mix=mix)
    method.step(batch())  # Dash warms up on labelled pixels alone
    out = method.step(batch())
    out.loss.backward()
    assert out.loss.isfinite()
    assert out.logs["mask_ratio"] > 0.0


def test_classmix_pastes_whole_classes_of_the_guess():
    with_mix, without = make(mix="classmix"), make(mix="none")
    assert not torch.equal(with_mix.step(batch()).logs["loss_unsup"], without.step(batch()).logs["loss_unsup"])


def test_entropy_drops_the_share_of_highest_entropy():
    probs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    target, weight = EntropyPercentile(0.8)(probs)
    entropy = -(probs * probs.log()).sum(1)
    dropped = entropy.argsort()[40:]
    assert torch.equal(target, probs.argmax(1))
    assert (weight[dropped] == 0).all()
    assert weight.sum() == 40
    with pytest.raises(ValueError, match=r"policy\.keep must lie in"):
        EntropyPercentile(1.5)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"model\.mix must be 'cutmix', 'classmix' or 'none', got 'mixup'"):
        make(mix="mixup")
    with pytest.raises(ValueError, match="policy=flexmatch remembers samples"):
        make(FlexMatch(3, 10))
