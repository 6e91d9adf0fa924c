"""The few collective operations that statistics need. With one process each is the identity and costs nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

_MESSAGE = 2**24
ItemT = TypeVar("ItemT")
ValueT = TypeVar("ValueT")


def world_size() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Sum a tensor over processes, in place, and return it. No gradient flows."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace float32 tensors by their means over processes, in place, in messages of about `_MESSAGE` numbers."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for tensor in [*tensors, None]:
        if tensor is not None:
            bucket.append(tensor)
        if bucket and (tensor is None or sum(t.numel() for t in bucket) >= _MESSAGE):
            message = torch.cat([t.reshape(-1) for t in bucket]).div_(world_size())
            dist.all_reduce(message)
            pieces = torch.split(message, [t.numel() for t in bucket])
            torch._foreach_copy_(bucket, [m.view_as(t) for m, t in zip(pieces, bucket, strict=True)])
            bucket = []


def all_gather_rows(x: Shaped[Tensor, rows * rest]) -> Shaped[Tensor, all_rows * rest]:
    """Concatenate the rows of all processes in rank order. Row counts may differ. No gradient flows."""
    if world_size() == 1:
        return x
    count = torch.tensor([x.shape[0]], device=x.device)
    counts = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    padded = x.new_zeros((max(sizes), *x.shape[1:]))
    padded[: x.shape[0]] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([block[:size] for block, size in zip(parts, sizes, strict=True)])


@contextlib.contextmanager
def joined() -> Iterator[bool]:
    """Meet the other processes that torchrun started, until the end; False where this one is alone.

    Messages go through CPUs (gloo): for work that exchanges results, not gradients.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield world_size() > 1
        return
    dist.init_process_group("gloo")
    try:
        yield True
    finally:
        dist.destroy_process_group()


def in_turns(
    shares: Callable[[Sequence[ItemT]], Iterator[ValueT]], items: Iterable[ItemT]
) -> Iterator[ValueT]:
    """Divide items among processes and give every process the values of all, a round at a time.

    `shares` computes the values of some items, in order. Items that any process names are computed. An error in one
    process is raised in all, which would else wait for it.
    """
    every = sorted(set().union(*gather_objects(list(items))))
    mine = shares(every[rank() :: world_size()])
    for _ in range(0, len(every), world_size()):
        value: ValueT | Exception | None
        try:
            value = next(mine, None)
        except Exception as error:
            value = error
        for given in gather_objects(value):
            if isinstance(given, Exception):
                raise given
            if given is not None:
                yield given


def gather_objects(value: Any) -> list[Any]:
    """Every process's (small, picklable) value, in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def gather_rows(x: Shaped[Tensor, rows * rest]) -> Shaped[Tensor, all_rows * rest]:
    """Concatenate the rows of all processes in rank order, with gradient; every process must give equally many.

    What the losses of all processes pull at a row is summed in the backward pass, so that with gradients averaged over
    processes the step's loss is the mean of theirs: each may compute its own rows' share or all of it.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _GatheredRows.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def sum_over_processes(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`all_reduce_sum` with gradient, not in place: for losses of sums over all images, as for `gather_rows`."""
    if world_size() == 1:
        return x
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce_sum(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return all_reduce_sum(grad_outputs[0].clone(memory_format=torch.contiguous_format))


class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        pulled = all_reduce_sum(grad_outputs[0].clone(memory_format=torch.contiguous_format))
        rows = pulled.shape[0] // world_size()
        return pulled[rank() * rows : (rank() + 1) * rows]
