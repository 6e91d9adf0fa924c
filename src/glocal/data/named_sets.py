"""The sets that `data=` opens by name. Another one is imported here and nowhere else."""

from __future__ import annotations

from glocal.data.builtin import DIGITS as DIGITS
from glocal.data.builtin import PHOTOS as PHOTOS
from glocal.data.builtin import TILES as TILES
from glocal.data.cifar import CIFAR10 as CIFAR10
from glocal.data.cifar import CIFAR100 as CIFAR100
from glocal.data.named_set import NamedSet

NAMED_SETS: dict[str, NamedSet] = {
    named.name: named for named in list(globals().values()) if isinstance(named, NamedSet)
}
"""The sets by their names."""
