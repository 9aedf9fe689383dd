"""The usual Lightning project for the article's net: a module, a data module, a Trainer; timed by bench/speed.py."""

import logging
import time
import warnings
from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import LambdaCallback
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from remeasure.bench.baselines import pytorch_loops
from remeasure.bench.baselines.pytorch_loops import Timed


class ArticleModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = pytorch_loops.article_net()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        images, labels = batch
        loss = functional.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=pytorch_loops.LEARNING_RATE)


class ArticleData(LightningDataModule):
    def __init__(self, root: Path, *, num_images: int | None) -> None:
        super().__init__()
        self.root, self.num_images = root, num_images

    def train_dataloader(self) -> "DataLoader[tuple[Tensor, Tensor]]":
        return pytorch_loops.article_loader(self.root, split="train", num_images=self.num_images)


def lightning_template(
    *, root: Path, epochs: int, seed: int, num_images: int | None = None, scored: bool = False
) -> Timed:
    """Seconds of each epoch with module, data module and Trainer."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    seed_everything(seed)
    module, began, ended = ArticleModule(), list[float](), list[float]()
    stopwatch = LambdaCallback(
        on_train_epoch_start=lambda *_: began.append(time.perf_counter()),
        on_train_epoch_end=lambda *_: ended.append(time.perf_counter()),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on workers, and calls that torch has deprecated
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            gradient_clip_val=pytorch_loops.CLIP_NORM,
            callbacks=[stopwatch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=ArticleData(root, num_images=num_images))
    test = pytorch_loops.article_loader(root, split="test")
    scored_percent = pytorch_loops.accuracy_percent(module.model, test) if scored else None
    seconds = tuple(end - start for start, end in zip(began, ended, strict=True))
    return Timed(seconds=seconds, accuracy_percent=scored_percent)
