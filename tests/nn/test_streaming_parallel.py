"""A streamed trunk under what trains modules: DDP over two processes, Lightning's trainer."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from tests.nn.streaming_oracle import TOLERANCE, relative_error, settle
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from slidelens.nn.streaming import StreamingTrunk
from warm import START

if TYPE_CHECKING:
    from pathlib import Path

PROCESSES = 2


class Classifier(nn.Module):
    """A streamed trunk and a head, in one module."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(6, 2, dtype=torch.float64)
        nn.init.constant_(self.head.weight, 0.1)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(image).amax((2, 3)))
        return logits


def network() -> nn.Module:
    return settle(
        nn.Sequential(
            nn.Conv2d(3, 6, 5, stride=2, padding=2), nn.BatchNorm2d(6), nn.ReLU(True),
            nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 6, 3, padding=1),
        )
    )  # fmt: skip


def picture(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, 71, 64, generator=generator, dtype=torch.float64)


def replica(rank: int, folder: Path) -> None:
    """Take one step on this process's own image; keep the gradients that DDP leaves."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES
    )
    model = Classifier(StreamingTrunk(network(), 32))
    parallel = DistributedDataParallel(model)
    parallel(picture(rank)).square().sum().backward()
    torch.save([p.grad for p in model.parameters()], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ddp_leaves_the_mean_gradient_in_every_process(tmp_path):
    torch.multiprocessing.start_processes(replica, (tmp_path,), PROCESSES, start_method=START)
    model = Classifier(network())
    for seed in range(PROCESSES):
        (model(picture(seed)).square().sum() / PROCESSES).backward()
    for rank in range(PROCESSES):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for grad, p in zip(found, model.parameters(), strict=True):
            assert relative_error(grad, p.grad) <= TOLERANCE


def test_lightnings_trainer_takes_the_steps_of_the_plain_module(tmp_path):
    import lightning  # here: the other test's processes load this file too

    class Training(lightning.LightningModule):
        """The module that a Lightning user writes."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return self.model(batch).square().sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)

    plain = Classifier(network())
    streamed = copy.deepcopy(plain)
    streamed.trunk = StreamingTrunk(streamed.trunk, 32)
    for model in (plain, streamed):
        trainer = lightning.Trainer(
            accelerator="cpu", max_epochs=2, accumulate_grad_batches=2, default_root_dir=tmp_path,
            logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Training(model), DataLoader([picture(seed)[0] for seed in range(4)]))
    before = Classifier(network())
    for p, q, start in zip(
        plain.parameters(), streamed.parameters(), before.parameters(), strict=True
    ):
        assert relative_error(q, p) <= TOLERANCE
        assert not torch.equal(p, start)
