"""Several processes that train one adapter together, as torchrun starts them.

What decides a run (its specification, each Poisson draw) is made by the first process and told to the others, so that
however many there are, one mechanism with one ledger takes place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import distributed

_LOOPBACK: Final = "lo" if sys.platform == "linux" else "lo0"


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those that train together; alone, every call is its own answer.

    here: how many of them run on this machine.
    """

    rank: int = 0
    size: int = 1
    here: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all: it draws, adds the noise, writes ledger and checkpoints."""
        return self.rank == 0

    def same_text(self, text: str | None) -> str:
        """The first process's ``text``; the others give None."""
        told = (text or "").encode()
        length = self.same(torch.tensor([len(told)]))
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.leads:
            content = torch.frombuffer(bytearray(told), dtype=torch.uint8) if told else content
        return bytes(self.same(content).tolist()).decode()

    def same(self, tensor: torch.Tensor) -> torch.Tensor:
        """The first process's ``tensor``, put into this process's, which has the same shape and type."""
        if self.size > 1:
            distributed.broadcast(tensor, 0)
        return tensor

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' tensors, put into each."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one; without torchrun, this one alone.

    gloo on CPUs, NCCL for what lies on GPUs. On one machine they meet on the loopback interface only.
    """
    if not distributed.is_torchelastic_launched():
        yield Ranks()
        return
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", _LOOPBACK)
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    yield Ranks(distributed.get_rank(), distributed.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]))
    # After an error the others may wait for this process for ever: torchrun ends them.
    distributed.destroy_process_group()
