"""Several processes of one `headwater pretrain`, as torchrun starts them: each with its share of every epoch."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from model_core.encoder.pretraining import Group

__all__ = ["together"]


@contextmanager
def together() -> Iterator[Group]:
    """The group that torchrun's environment names; a process alone without one. Gloo: the gradients are small."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Group()
        return
    dist.init_process_group("gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), _average)
    finally:
        dist.destroy_process_group()


def _average(tensors: Sequence[Tensor]) -> None:
    """One exchange for all of them."""
    flat = torch.cat([tensor.flatten().cpu() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
