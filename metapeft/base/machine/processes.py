"""Several processes that train one learner: each takes tasks of its own, the means are taken over all.

Built on torch.distributed: gloo on the CPU, NCCL on CUDA, started by torchrun.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from metapeft.base.machine.memory import is_out_of_memory

TIMEOUT = timedelta(hours=2)  # rank 0 evaluates and writes alone while the others wait


@dataclass(frozen=True)
class Share:
    """The episodes of one rank: `start .. start + count - 1`, with their weight in the mean over all ranks."""

    start: int
    count: int
    weight: float


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; alone, every method returns what it was given.

    Attributes:
        rank: its number, 0 to `count - 1`. count: of processes.
        neighbours: how many of them run on this machine.

    Example:
        >>> Processes(1, 3).share(100, 8), Processes(2, 3).share(100, 8)
        (Share(start=103, count=3, weight=0.375), Share(start=106, count=2, weight=0.25))
        >>> Processes().mean({"x": torch.tensor(2.0)}, 1.0)
        {'x': tensor(2.)}
    """

    rank: int = 0
    count: int = 1
    neighbours: int = 1

    @property
    def main(self) -> bool:
        """Whether this is rank 0, the only one that writes."""
        return self.rank == 0

    def share(self, start: int, count: int) -> Share:
        """This rank's part of episodes `start .. start + count - 1`; disjoint, equal up to one episode.

        With fewer episodes than ranks, the ranks left over repeat the last episode with weight 0.
        """
        if self.rank >= count:
            return Share(start + count - 1, 1, 0.0)
        each, over = divmod(count, self.count)
        first = self.rank * each + min(self.rank, over)
        own = each + (self.rank < over)
        return Share(start + first, own, own / count)

    def mean(self, values: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
        """`sum_ranks weight * value`, the same bits on all ranks; keys and shapes are the same on all of them."""
        if self.count == 1:
            return dict(values)
        groups: dict[tuple[torch.dtype, torch.device], list[str]] = {}
        for name in sorted(values):
            groups.setdefault((values[name].dtype, values[name].device), []).append(name)
        found: dict[str, Tensor] = {}
        for names in groups.values():
            flat = torch.cat([values[name].detach().flatten() for name in names]) * weight
            with self._together():
                dist.all_reduce(flat)
            pieces = torch.split(flat, [values[name].numel() for name in names])
            found.update({name: piece.view_as(values[name]) for name, piece in zip(names, pieces)})
        return {name: found[name] for name in values}

    def most(self, value: int) -> int:
        """The largest of the ranks' numbers."""
        if self.count == 1:
            return value
        found = torch.tensor(value, device=_device())
        with self._together():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def least(self, value: int) -> int:
        """The smallest of the ranks' numbers."""
        return -self.most(-value)

    def decided(self, function: Callable[[], Any]) -> Any:
        """What `function()` returns on rank 0, where alone it is called; a value that JSON can say.

        Raises:
            ValueError: on all ranks, if the function raises one.
        """
        if self.count == 1:
            return function()
        message: dict[str, Any] = {}
        own: ValueError | None = None
        if self.main:
            try:
                message = {"value": function()}
            except ValueError as error:
                own, message = error, {"error": str(error)}
        message = self._told(message)
        if own is not None:
            raise own
        if "error" in message:
            raise ValueError(message["error"])
        return message["value"]

    def align(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's tensors, on all ranks."""
        if self.count == 1:
            return dict(state)
        found = {name: value.to(_device(value)).contiguous() for name, value in state.items()}
        with self._together():
            for name in sorted(found):
                dist.broadcast(found[name], 0)
        return {name: value.to(state[name].device) for name, value in found.items()}

    def wait(self) -> None:
        """Go on when all ranks are here."""
        self.most(0)

    def _told(self, message: dict[str, Any]) -> dict[str, Any]:
        text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8).to(_device())
        length = torch.tensor(len(text), device=_device())
        with self._together():
            dist.broadcast(length, 0)
            text = text if self.main else torch.empty(int(length), dtype=torch.uint8, device=_device())
            dist.broadcast(text, 0)
        found: dict[str, Any] = json.loads(text.cpu().numpy().tobytes())
        return found

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ConnectionError(
                f"rank {self.rank} of {self.count}: another rank is gone, or can't be reached, so the run ends; its "
                f"last checkpoint is whole, and resuming goes on from there ({str(error).splitlines()[0]})"
            ) from error


def processes() -> Processes:
    """The processes that torchrun started together, joined at the first call; this process alone without it.

    Example:
        >>> processes()
        Processes(rank=0, count=1, neighbours=1)
    """
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ:
            return Processes()
        _join()
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    return Processes(dist.get_rank(), dist.get_world_size(), neighbours)


def restarts() -> tuple[int, int]:
    """How often torchrun has started this job again, and how often it may.

    Example:
        >>> restarts()
        (0, 0)
    """
    names = ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")
    done, allowed = (int(os.environ.get(name, "0")) for name in names)
    return done, allowed


def _join() -> None:
    # Imported later, as torch's optimisers do, its default arguments would hold the group for good: the group's threads
    # would outlive the interpreter, and now and then abort a process that had done all its work.
    importlib.import_module("torch.distributed.nn.functional")
    backend = "gloo"
    if torch.cuda.is_available():
        own = int(os.environ.get("LOCAL_RANK", "0"))
        if own < torch.cuda.device_count():  # else it can train on the CPU; `usable` refuses the rest
            torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        # torchrun's store outlives a restart, and gloo would find the addresses of the dead processes in it
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        agent = dist.TCPStore(address, port, count, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]
        store = dist.PrefixStore(f"metapeft/{restarts()[0]}", agent)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(value: Tensor | None = None) -> torch.device:
    """Where a tensor has to be for the group's backend: on the GPU for NCCL alone."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if value is None else value.device
