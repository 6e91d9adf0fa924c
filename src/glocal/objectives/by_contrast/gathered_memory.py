"""A ring memory that is written once a step with the rows of all micro-batches and all processes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from glocal.distributed import all_gather_rows
from glocal.errors import TrainingError
from glocal.objectives.by_contrast.ring_memory import RingMemory, StorageType


class GatheredMemory(RingMemory):
    """The last `capacity` rows, each with the number of the image it came from; written by `finish_step` only.

    Until then a step's rows wait, so no loss of a step meets that step's own rows. Rows go in image by image, an
    image's views side by side: micro-batches and processes hold consecutive images, so their rows strung together are
    those of one batch in one process, in the same order. (The Mugs reference writes view by view.)

    Args:
        capacity: number of rows.
        dim: width of a row.
        storage: `bf16` or `fp32`.
        unit_rows: store rows divided by their length.
        fill_random: start full of noise that counts as rows (the reference).
        double_advance: move the pointer twice as far as was written (the reference's memories).

    >>> memory = GatheredMemory(8, 4, storage="fp32")
    >>> memory.gather(torch.randn(2, 2, 4), torch.tensor([5, 6])); memory.finish_step(); memory.payload[:4].tolist()
    [5, 5, 6, 6]
    """

    payload: Int64[Tensor, " capacity"]

    def __init__(
        self,
        capacity: int,
        dim: int,
        storage: StorageType = "bf16",
        unit_rows: bool = False,
        fill_random: bool = False,
        double_advance: bool = False,
    ) -> None:
        super().__init__(capacity, dim, storage, unit_rows, True, fill_random, double_advance)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def gather(self, rows: Float[Tensor, "images views dim"], image: Int64[Tensor, " images"]) -> None:
        """Keep a micro-batch's rows, of any number of images, for the end of the step."""
        self._waiting.append((rows.detach().flatten(0, 1), image[:, None].expand(rows.shape[:2]).flatten()))

    @torch.no_grad()
    def finish_step(self) -> None:
        """Write what the processes gathered since the last call.

        Raises:
            TrainingError: when a step's rows don't all fit, which would lose some of them unseen.
        """
        if not self._waiting:
            return
        rows, image = (all_gather_rows(torch.cat(waiting)) for waiting in zip(*self._waiting, strict=True))
        self._waiting.clear()
        if rows.shape[0] > self.capacity:
            raise TrainingError(
                f"One step writes {rows.shape[0]} rows into a queue or memory of {self.capacity}: some would be lost "
                f"before they served once. Set the term's queue and memory to at least {rows.shape[0]} rows, better "
                "many times that, or lower training.batch_size."
            )
        self.write(rows, image)

    def images(self) -> Int64[Tensor, " filled"]:
        """The image of each row of `rows()`; -1 for noise."""
        return self.payload[: self.filled]

    def fill(self) -> Float[Tensor, ""]:
        """Share of the capacity that holds rows."""
        return torch.tensor(self.filled / self.capacity, device=self.stored.device)
