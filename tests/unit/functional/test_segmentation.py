"""Losses and scores of masks, against torch and torchmetrics."""

from __future__ import annotations

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassJaccardIndex

from ssl_suite.functional.segmentation import (
    IGNORE,
    VOID,
    agreement,
    averaged_probs,
    iou_sums,
    masked_mean,
    pixel_loss,
    to_rows,
    to_target,
)
from ssl_suite.methods.supervised.segmentation import Segmenter
from ssl_suite.testing import tiny_backbone, tiny_batch, tiny_spec, tiny_views


def case(seed: int = 0, k: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, mask = torch.randn(5, k, 7, 9, generator=generator), torch.randint(0, k, (5, 7, 9), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.2] = VOID
    return logits.requires_grad_(), mask.to(torch.uint8)


def test_the_loss_is_cross_entropy_without_the_void():
    logits, mask = case()
    loss, expected = pixel_loss(logits, to_target(mask)), F.cross_entropy(logits, mask.long(), ignore_index=VOID)
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)
    assert (ours.movedim(1, -1)[mask == VOID] == 0).all()


def test_nothing_to_learn_gives_zero_and_no_nan():
    logits, mask = case()
    loss = pixel_loss(logits, torch.full(mask.shape, IGNORE))
    loss.backward()
    assert loss == 0.0
    assert (logits.grad == 0).all()


def test_weights_leave_the_divisor_alone():
    values, weight, count = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([1, 1, 1, 0]) > 0
    assert masked_mean(values, weight, count) == pytest.approx(5 / 3)


def test_rows_are_in_the_order_of_the_mask():
    logits, _ = case()
    rows = to_rows(logits)
    assert torch.equal(rows[1 * 63 + 2 * 9 + 3], logits[1, :, 2, 3])


def test_sums_pooled_over_batches_are_torchmetrics_index():
    names, metric = ("a", "b", "c", "d"), MulticlassJaccardIndex(4, average=None, ignore_index=VOID)
    totals = {f"iou_{name}": [0, 0] for name in names}
    for seed in range(3):
        logits, mask = case(seed)
        logits = logits + 2.0 * F.one_hot(to_target(mask).clamp(min=0), 4).movedim(-1, 1) * (seed > 0)  # batches of unequal quality
        for name, (both, union) in iou_sums(logits, to_target(mask), names).items():
            totals[name][0] += int(both)
            totals[name][1] += union
        metric.update(logits, mask.long())
    torch.testing.assert_close(torch.tensor([both / union for both, union in totals.values()]), metric.compute())


def test_a_trainer_pools_the_set_and_leaves_out_absent_classes():
    spec = tiny_spec("images", target="mask")
    spec = type(spec)(**{**spec.__dict__, "classes": (*spec.classes, "absent")})
    torch.manual_seed(0)
    method = Segmenter(tiny_backbone("maps", spec), tiny_views(spec), num_classes=4)
    with torch.no_grad():
        method.head.bias[3] = -100.0
    batches = [tiny_batch(spec, n, start) for n, start in ((4, 0), (7, 4), (1, 11))]
    batches[2]["y"][:] = batches[2]["y"].masked_fill(batches[2]["y"] == 2, 0)          # a batch without the class c
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        enable_model_summary=False)
    found = trainer.test(method, dataloaders=DataLoader(batches, batch_size=None), verbose=False)[0]
    metric = MulticlassJaccardIndex(4, average=None, ignore_index=VOID)
    method.eval()
    for batch in batches:
        metric.update(method.logits(batch), batch["y"].long())
    expected = metric.compute()
    assert [found[f"test/iou_{c}"] for c in "abc"] == pytest.approx(expected[:3].tolist(), abs=1e-6)
    assert found["test/iou_absent"] != found["test/iou_absent"]
    assert found["test/miou"] == pytest.approx(float(expected[:3].mean()), abs=1e-6)
    macro = MulticlassJaccardIndex(4, ignore_index=VOID)
    for batch in batches:
        macro.update(method.logits(batch), batch["y"].long())
    assert found["test/miou"] == pytest.approx(float(macro.compute()), abs=1e-6)


def test_guesses_are_averaged_over_sizes_and_mirror_images():
    x = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, ...]] = []

    def predict(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape[2:]))
        return 5.0 * x

    probs = averaged_probs(predict, x)
    assert sorted(set(seen)) == [(6, 8), (9, 12), (12, 16), (18, 24), (24, 32)]
    assert len(seen) == 10
    torch.testing.assert_close(probs.sum(1), torch.ones(2, 12, 16))
    torch.testing.assert_close(averaged_probs(predict, x, [1.0]), (5.0 * x).softmax(1))  # what sees no sides is turned back
    sided = averaged_probs(lambda x: torch.arange(16.0) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(2, 2, 12, 1), x, [1.0])
    torch.testing.assert_close(sided, sided.flip(3))  # what does see them is averaged with its mirror image


def test_agreement_is_the_mean_iou_of_two_masks():
    one, other = (torch.randint(0, 3, (4, 6, 6), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    one[0], other[0] = other[0], other[0]
    one[1], other[1] = 0, 1
    found = agreement(one, other, 4)
    for a, b, value in zip(one, other, found, strict=True):
        classes = [c for c in range(4) if ((a == c) | (b == c)).any()]
        expected = sum(float(((a == c) & (b == c)).sum() / ((a == c) | (b == c)).sum()) for c in classes) / len(classes)
        assert value == pytest.approx(expected)
    assert found[0] == 1.0
    assert found[1] == 0.0
