"""Does wav2vec 2.0 help where transcripts are few? Error rates of CTC from scratch and after pre-training, on one CPU core.

    OMP_NUM_THREADS=1 python scripts/spoken_ctc.py --seeds 0 1 2 --out spoken_ctc.csv

Sentences in synthetic voices at 8 kHz. All training recordings pre-train without their text; a few of them have text. Both
arms get the same batches, steps and masks; each may choose its rate on validation voices, and scratch trains its front-end,
which the other arm keeps. The test voices are heard by neither. Finished rows of the CSV are not computed again.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from datamodules.speech.spoken import SpokenCorpusDataModule
from ssl_suite.backbones.speech import Wav2Vec2
from ssl_suite.batch import Spec
from ssl_suite.method import Method
from ssl_suite.methods.pretraining.wav2vec2 import Wav2Vec2Pretraining
from ssl_suite.methods.supervised.ctc import CTC
from ssl_suite.optim import Cosine, TriStage

FIELDS = ("seed", "arm", "lr", "val", "test", "cpu_seconds")
FRONT_END = ((10, 5), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
Weights = dict[str, Tensor]


def corpus(seed: int, args: argparse.Namespace, form: Literal["labeled", "unlabeled"], steps: int) -> SpokenCorpusDataModule:
    """The corpus with the first ``args.labels`` transcripts of a random order that depends on the seed."""
    data = SpokenCorpusDataModule(target=args.target, utterances=args.utterances, rate=8000, seed=seed,
                                  batch_size=args.batch if form == "unlabeled" else args.batch_labeled,
                                  steps_per_epoch=steps, views={"weak": []})
    data.prepare_data()
    data.setup()
    order = torch.randperm(len(data.labeled), generator=torch.Generator().manual_seed(seed)).numpy()
    data.form, data.labeled = form, data.labeled[order[: args.labels]]
    return data


def backbone(spec: Spec, args: argparse.Namespace) -> Wav2Vec2:
    """wav2vec 2.0, tiny: one frame every 20 ms of 8 kHz."""
    return Wav2Vec2(spec, extractor_mode="layer_norm", conv_channels=args.conv, conv_layers=FRONT_END, width=args.width, depth=args.depth,
                    heads=4, position_kernel=32, position_groups=4, dropout=args.dropout, layerdrop=0.0)


def train(method: Method, data: SpokenCorpusDataModule, steps: int, callbacks: list[L.Callback] | None = None) -> L.Trainer:
    """Train on the CPU, without files."""
    trainer = L.Trainer(accelerator="cpu", max_steps=steps, max_epochs=1, logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
                        gradient_clip_val=args_clip, callbacks=callbacks)
    trainer.fit(method, datamodule=data)
    return trainer


args_clip = 5.0


def pretrain(seed: int, args: argparse.Namespace, callbacks: list[L.Callback] | None = None) -> Weights:
    """Weights of a backbone that heard all training voices."""
    L.seed_everything(seed, verbose=False)
    data = corpus(seed, args, "unlabeled", args.pretrain_steps)
    method = Wav2Vec2Pretraining(backbone(data.spec, args), data.views, num_negatives=args.negatives, entries=args.entries,
                                 codebook_dim=128, projection_dim=128, crop=args.crop, mask_prob=args.mask_prob, mask_length=args.mask_length,
                                 tau=(2.0, args.tau_floor), tau_decay=(args.tau_floor / 2.0) ** (1.0 / args.pretrain_steps),
                                 diversity_weight=args.diversity, gradient_scale=args.gradient_scale, dropout=0.0, penalty_weight=args.penalty,
                                 optimizer=partial(torch.optim.AdamW, lr=args.pretrain_lr, betas=(0.9, 0.98), weight_decay=0.01),
                                 schedule=Cosine(warmup=0.1))
    train(method, data, args.pretrain_steps, callbacks)
    return method.backbone.state_dict()


def finetune(seed: int, args: argparse.Namespace, lr: float, weights: Weights | None) -> dict[str, Any]:
    """Validation and test error of CTC, from scratch without weights."""
    L.seed_everything(seed, verbose=False)
    data = corpus(seed, args, "labeled", args.finetune_steps)
    net = backbone(data.spec, args)
    if weights is not None:
        net.load_state_dict(weights)
    method = CTC(net, data.views, vocabulary=data.spec.vocabulary, freeze_frontend=weights is not None,
                 freeze_share=0.0 if weights is None else args.freeze_share, mask_prob=args.ft_mask_prob, mask_length=args.mask_length,
                 channel_prob=0.25, channel_length=16, schedule=TriStage(),
                 optimizer=partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.98), weight_decay=0.01))
    train(method, data, args.finetune_steps)
    judge = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    rate = f"/{method.symbol_rate}"
    val, test = judge.validate(method, datamodule=data, verbose=False)[0], judge.test(method, datamodule=data, verbose=False)[0]
    return {"val": val[f"val{rate}"], "test": test[f"test{rate}"]}


class Watch(L.Callback):
    def __init__(self): self.n=0
    def on_train_batch_end(self, trainer, m, out, batch, i):
        if (i+1) % 50 == 0:
            print(i+1, {k.split("/")[1]: round(float(v),3) for k,v in trainer.callback_metrics.items()}, round(time.process_time()), flush=True)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser()
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--out", type=Path, default=Path("spoken_ctc.csv"))
    for name, value in dict(target="letters", utterances=1200, labels=80, conv=64, width=128, depth=3, dropout=0.0, batch=16, batch_labeled=12,
                            pretrain_steps=300, pretrain_lr=2e-3, crop=1.5, negatives=30, entries=40, mask_prob=0.65, mask_length=10,
                            tau_floor=0.5, diversity=0.1, gradient_scale=0.1, penalty=1.0, finetune_steps=200, freeze_share=0.1, ft_mask_prob=0.3).items():
        p.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    p.add_argument("--lrs", type=float, nargs="+", default=[1e-3])
    p.add_argument("--arms", nargs="+", default=["pretrained", "scratch"])
    return p


if __name__ == "__main__":
    import warnings, logging
    warnings.filterwarnings("ignore"); logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    args = parser().parse_args()
    for seed in args.seeds:
        t = time.process_time()
        w = pretrain(seed, args, [Watch()]) if "pretrained" in args.arms else None
        print("pretrain cpu", time.process_time() - t, flush=True)
        for arm in args.arms:
            for lr in args.lrs:
                t = time.process_time()
                print(arm, lr, finetune(seed, args, lr, w if arm == "pretrained" else None), round(time.process_time() - t), flush=True)
