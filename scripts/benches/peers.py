"""The other side: adapters that import a peer, installed or from a checkout, build its step and leave its code as it is.

Peers augment sample by sample; here, as in their own programs, in ``workers`` processes that share the batch. Each keeps the
widths, optimizer and views of its own example. Where an old checkout meets new packages, the adapter mends its own process
only, and says how.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.utils.benchmarking import knn_predict
from omegaconf import OmegaConf
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from benches.ours import WAVE, Work, classifier, features, pictures, series, waves
from benches.turns import Given, Watch
from ssl_suite.backbones.images import ResNet
from ssl_suite.batch import Spec


class Pictures(Dataset[Any]):
    """PIL pictures under a transform."""

    def __init__(self, x: Tensor, transform: Callable[[Any], Any]) -> None:
        self.items = [to_pil_image(sample) for sample in x]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.items[i])


def augmented(given: Given, watch: Watch, x: Tensor, transform: Callable[[Any], Any]) -> Callable[[], list[Tensor]]:
    """Makes the views of a batch: the workers take equal shares of it at the same time."""
    loader = DataLoader(Pictures(x, transform), batch_size=-(-len(x) // max(1, given.workers)), num_workers=given.workers,
                        persistent_workers=given.workers > 0, multiprocessing_context="fork" if given.workers else None)

    def views() -> list[Tensor]:
        with watch:
            return [torch.cat(parts).to(given.device) for parts in zip(*loader, strict=True)]

    return views


def use(given: Given, name: str) -> str:
    """Put a peer's checkout first on the path; returns the checkout."""
    sys.path.insert(0, given.peers[name])
    return given.peers[name]


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Gradient and step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def half(given: Given) -> contextlib.AbstractContextManager[Any]:
    """float16 as peers use it by default, on a GPU alone."""
    return torch.autocast("cuda", torch.float16) if given.device.type == "cuda" else contextlib.nullcontext()


# Views ----------------------------------------------------------------------------------------------------------------


def torchvision_views(given: Given, watch: Watch) -> Work:
    """The operations of `ours.crops` by torchvision v2, sample by sample in this process."""
    per_sample, samples = v2.Compose([
        v2.RandomResizedCrop(given.size, (0.2, 1.0), antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8), v2.RandomGrayscale(0.2),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.25,) * 3)]), list(pictures(given))
    return lambda: torch.stack([per_sample(s) for s in samples]).to(given.device)


def lightly_transform(given: Given) -> SimCLRTransform:
    """Lightly's two crops with the strengths of ``data=cifar10``."""
    return SimCLRTransform(given.size, cj_strength=0.5, cj_sat=0.4, min_scale=0.2, gaussian_blur=0.0)


def lightly_views(given: Given, watch: Watch) -> Work:
    """The same by lightly's transform on PIL pictures, sample by sample in this process."""
    transform, pil = lightly_transform(given).transforms[0], [to_pil_image(sample) for sample in pictures(given)]
    return lambda: torch.stack([transform(p) for p in pil]).to(given.device)


def kornia_views(given: Given, watch: Watch) -> Work:
    """The same by kornia, on the batch, with parameters drawn per sample."""
    K, x = importlib.import_module("kornia.augmentation"), pictures(given).to(given.device)
    views = nn.Sequential(
        K.RandomResizedCrop((given.size, given.size), scale=(0.2, 1.0)), K.RandomHorizontalFlip(),
        K.ColorJiggle(0.4, 0.4, 0.2, 0.1, p=0.8), K.RandomGrayscale(p=0.2),
        K.Normalize(torch.full((3,), 0.5), torch.full((3,), 0.25))).to(given.device)
    return lambda: views(x.float() / 255.0)


# SimCLR ---------------------------------------------------------------------------------------------------------------


def lightly_simclr(given: Given, watch: Watch) -> Work:
    """Lightly's parts put together as its own example does, with our net and widths."""
    views = augmented(given, watch, pictures(given), lightly_transform(given))
    net = ResNet(Spec("images", (3, given.size, given.size)), name="resnet18")
    net.to(given.device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    head, criterion = SimCLRProjectionHead(512, 512, 128).to(given.device), NTXentLoss(0.5)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=1e-3)

    def step() -> None:
        first, second = views()
        descend(optimizer, criterion(head(net(first)), head(net(second))))

    return step


def solo_simclr(given: Given, watch: Watch) -> Work:
    """solo-learn: its SimCLR with ``scripts/pretrain/cifar/simclr.yaml``, without a schedule. Its net pads to 34 pixels."""
    scripts = f"{use(given, 'solo-learn')}/scripts/pretrain/cifar"
    data, simclr = (importlib.import_module(f"solo.{name}") for name in ("data.pretrain_dataloader", "methods.simclr"))
    cfg: Any = OmegaConf.load(f"{scripts}/simclr.yaml")
    cfg.data.update(num_classes=10, num_large_crops=2, num_small_crops=0)
    cfg.scheduler.name = "none"
    symmetric: Any = OmegaConf.load(f"{scripts}/augmentations/symmetric.yaml")
    (crop,) = symmetric
    crop.crop_size = given.size
    pipeline = data.build_transform_pipeline("cifar10", crop)
    views = augmented(given, watch, pictures(given), data.prepare_n_crop_transform([pipeline], [2]))
    method = simclr.SimCLR(cfg).to(given.device, memory_format=torch.channels_last)
    optimizer = method.configure_optimizers()
    index, y = torch.arange(given.batch, device=given.device), torch.arange(given.batch, device=given.device) % 10

    def step() -> None:
        x = views()
        with half(given):
            loss = method.training_step([index, x, y], 0)
        descend(optimizer, loss)

    return step


def stable_simclr(given: Given, watch: Watch) -> Work:
    """stable-pretraining: the parts of its ``benchmarks/cifar10/simclr-resnet18.py``. A checkout has no version: it is told one."""
    use(given, "stable-pretraining")
    version = metadata.version
    vars(metadata)["version"] = lambda name: "0" if name == "stable-pretraining" else version(name)
    spt, forward, t = (importlib.import_module(f"stable_pretraining{name}") for name in ("", ".forward", ".data.transforms"))
    ops = [t.RGB(), t.RandomResizedCrop((given.size, given.size)), t.RandomHorizontalFlip(p=0.5),
           t.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8), t.RandomGrayscale(p=0.2),
           t.ToImage(**spt.data.static.CIFAR10)]
    both = t.MultiViewTransform([t.Compose(*ops), t.Compose(*ops)])
    views = augmented(given, watch, pictures(given), lambda p: [view["image"] for view in both({"image": p})["views"]])
    net = spt.backbone.from_torchvision("resnet18", low_resolution=True)
    net.fc = nn.Identity()
    head = nn.Sequential(nn.Linear(512, 2048), nn.BatchNorm1d(2048), nn.ReLU(inplace=True), nn.Linear(2048, 2048),
                         nn.BatchNorm1d(2048), nn.ReLU(inplace=True), nn.Linear(2048, 256))
    module = spt.Module(backbone=net, projector=head, forward=forward.simclr, simclr_loss=spt.losses.NTXEntLoss(temperature=0.5))
    module.to(given.device)
    optimizer = spt.optim.LARS(module.parameters(), lr=5, weight_decay=1e-6)
    return lambda: descend(optimizer, module({"views": [{"image": x} for x in views()]}, "fit")["loss"])


# Masked autoencoder ---------------------------------------------------------------------------------------------------

SIZES = {"vit_tiny_patch16_224": (192, 12, 3), "vit_small_patch16_224": (384, 12, 6), "vit_base_patch16_224": (768, 12, 12),
         "vit_large_patch16_224": (1024, 24, 16)}
"""Width, depth and heads."""


def facebook_mae(given: Given, watch: Watch) -> Work:
    """facebookresearch/mae with the transforms of its ``main_pretrain.py``.

    It is written for timm 0.3.2: ``np.float`` and a block's ``qk_scale`` are given back to it. With timm's block of today it has
    fused attention, which it would not have had.
    """
    use(given, "mae")
    vars(np)["float"] = float
    module = importlib.import_module("models_mae")
    vars(module)["Block"] = lambda *args, qk_scale, **kwargs: Block(*args, **kwargs)
    width, depth, heads = SIZES[given.network]
    net = module.MaskedAutoencoderViT(
        img_size=given.size, patch_size=16, embed_dim=width, depth=depth, num_heads=heads, decoder_embed_dim=512, decoder_depth=8,
        decoder_num_heads=16, norm_layer=partial(nn.LayerNorm, eps=1e-6), norm_pix_loss=True).to(given.device)
    crop = transforms.Compose([
        transforms.RandomResizedCrop(given.size, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    views = augmented(given, watch, pictures(given), lambda p: [crop(p)])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler(enabled=given.device.type == "cuda")

    def step() -> None:
        (x,) = views()
        with half(given):
            loss, _, _ = net(x, mask_ratio=0.75)
        loss.item()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


# FixMatch -------------------------------------------------------------------------------------------------------------


def kekmodel_fixmatch(given: Given, watch: Watch) -> Work:
    """kekmodel/FixMatch-pytorch: its views, network, averaged weights and interleaving; the loss of its ``train.py``.

    ``np.int`` is given back to it.
    """
    use(given, "fixmatch")
    vars(np)["int"] = int
    data, nets, ema = (importlib.import_module(name) for name in ("dataset.cifar", "models.wideresnet", "models.ema"))
    fixmatch = data.TransformFixMatch(data.cifar10_mean, data.cifar10_std)
    weak = augmented(given, watch, pictures(given), lambda p: [fixmatch.normalize(fixmatch.weak(p))])
    both = augmented(given, watch, pictures(given, 7 * given.batch, seed=1), fixmatch)
    net = nets.build_wideresnet(depth=28, widen_factor=2, dropout=0, num_classes=10).to(given.device)
    teacher = ema.ModelEMA(Namespace(device=given.device), net, 0.999)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4)
    y = torch.arange(given.batch, device=given.device) % 10

    def step() -> None:
        x = torch.cat([*weak(), *both()])
        logits = net(x.unflatten(0, (-1, 15)).transpose(0, 1).flatten(0, 1))
        logits = logits.unflatten(0, (15, -1)).transpose(0, 1).flatten(0, 1)
        labeled, guess, strong = logits.split([given.batch, 7 * given.batch, 7 * given.batch])
        confidence, target = guess.detach().softmax(-1).max(-1)
        mask = confidence.ge(0.95).float()
        loss = F.cross_entropy(labeled, y) + (F.cross_entropy(strong, target, reduction="none") * mask).mean()
        descend(optimizer, loss)
        loss.item(), mask.mean().item()
        teacher.update(net)

    return step


# The rest -------------------------------------------------------------------------------------------------------------


def official_tent(given: Given, watch: Watch) -> Work:
    """DequanWang/tent as it stands; it serves networks with BatchNorm."""
    use(given, "tent")
    tent = importlib.import_module("tent")
    model, x = classifier(given)
    model = tent.configure_model(model)
    adapted = tent.Tent(model, torch.optim.Adam(tent.collect_params(model)[0], lr=1e-3))
    return lambda: adapted(x)


def torchaudio_hubert(given: Given, watch: Watch) -> Work:
    """Torchaudio's pre-training model over the network of `ours.wav2vec2`: its masks, and HuBERT's loss over 100 clusters.

    torchaudio has no loss of wav2vec 2.0; this one spares the quantizer and the distractors, and here frames that are not masked.
    """
    audio, spec = importlib.import_module("torchaudio.models"), waves(given).to(given.device)
    width = WAVE["width"]
    layers = [(WAVE["conv_channels"], *layer) for layer in [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]]
    net = audio.hubert_pretrain_model(
        extractor_mode="group_norm", extractor_conv_layer_config=layers, extractor_conv_bias=False, encoder_embed_dim=width,
        encoder_projection_dropout=0.1, encoder_pos_conv_kernel=128, encoder_pos_conv_groups=16, encoder_num_layers=WAVE["depth"],
        encoder_num_heads=WAVE["heads"], encoder_attention_dropout=0.1, encoder_ff_interm_features=4 * width,
        encoder_ff_interm_dropout=0.0, encoder_dropout=0.1, encoder_layer_norm_first=False, encoder_layer_drop=0.0,
        mask_prob=0.8, mask_selection="static", mask_other=0.0, mask_length=10, no_mask_overlap=False, mask_min_space=1,
        mask_channel_prob=0.0, mask_channel_selection="static", mask_channel_other=0.0, mask_channel_length=10,
        no_mask_channel_overlap=False, mask_channel_min_space=1, skip_masked=False, skip_nomask=True, num_classes=100,
        final_dim=256, feature_grad_mult=0.1).to(given.device)
    frames = net.wav2vec2(spec)[0].shape[1]
    labels = torch.randint(0, 100, (given.batch, frames), device=given.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)

    def step() -> None:
        logits, _, penalty = net(spec, labels)
        descend(optimizer, F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64)) + penalty)

    return step


def official_ts2vec(given: Given, watch: Watch) -> Work:
    """TS2Vec as its authors have it: one step of ``fit``. Its crops are as long as they are drawn, at most the whole series."""
    use(given, "ts2vec")
    module = importlib.import_module("ts2vec")
    model = module.TS2Vec(1, device=str(given.device), batch_size=given.batch)
    x = series(given).transpose(1, 2).numpy()
    return lambda: model.fit(x, n_iters=model.n_iters + 1)


def lightly_knn(given: Given, watch: Watch) -> Work:
    """Lightly's prediction in batches of 256."""
    train, y, test, test_y = features(given)
    bank, queries = (F.normalize(torch.from_numpy(f), dim=1) for f in (train, test))
    labels, truth = torch.from_numpy(y), torch.from_numpy(test_y)
    predict = partial(knn_predict, feature_bank=bank.T, feature_labels=labels, num_classes=10, knn_k=20, knn_t=0.07)
    return lambda: (torch.cat([predict(part)[:, 0] for part in queries.split(256)]) == truth).float().mean().item()

