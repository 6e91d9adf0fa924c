"""What every source of images must do."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence

import numpy as np

from glocal.conformance.suite import require
from glocal.data.source import ImageSource

_LOOKED_AT = 50
"""Images that are decoded, spread over the source."""


def names_its_images(source: ImageSource) -> None:
    """It has a name and at least one image, each with a key of its own."""
    require(isinstance(getattr(source, "name", None), str) and source.name != "", "it has no name")
    require(len(source) > 0, "it holds no images")
    keys = [source.key(i) for i in range(min(len(source), 1000))]
    require(all(isinstance(key, str) for key in keys), "a key is no text")
    require(
        len(set(keys)) == len(keys), f"two images have one key; {len(set(keys))} keys for {len(keys)} images"
    )


def decodes_to_rgb(source: ImageSource) -> None:
    """An image comes as 8-bit RGB, the same each time, and where it may come smaller not smaller than asked."""
    for i in _positions(source):
        image = source.read(i)
        require(
            getattr(image, "mode", None) == "RGB",
            f"image {i} ({source.key(i)}) is {getattr(image, 'mode', type(image))}",
        )
        require(
            np.array_equal(np.asarray(image), np.asarray(source.read(i))),
            f"image {i} differs when read again",
        )
        least = min(16, *image.size)
        require(
            min(source.read(i, at_least=16).size) >= least,
            f"image {i} is smaller than the 16 pixels asked for",
        )


def refuses_other_positions(source: ImageSource) -> None:
    """A position that it doesn't have is an IndexError, one below 0 too."""
    for position in (-1, len(source)):
        try:
            source.read(position)
        except IndexError:
            continue
        raise AssertionError(f"position {position} of {len(source)} images was read")


def labels_fit(source: ImageSource) -> None:
    """Labels, where there are any, are a whole number an image, -1 for none, within the class names."""
    labels = source.labels
    if labels is None:
        return
    require(
        labels.dtype == np.int64 and labels.shape == (len(source),),
        f"labels are {labels.dtype} of shape {labels.shape}",
    )
    classes = len(source.class_names or [])
    require(int(labels.min()) >= -1, f"a label is {int(labels.min())}")
    require(
        not classes or int(labels.max()) < classes, f"label {int(labels.max())}, but {classes} class names"
    )


def has_a_fingerprint(source: ImageSource) -> None:
    """Its fingerprint is 16 hexadecimal digits, the same again, and another one for other images."""
    print_ = source.fingerprint()
    require(len(print_) == 16 and set(print_) <= set("0123456789abcdef"), f"the fingerprint is {print_!r}")
    require(source.fingerprint() == print_, "the fingerprint differs when asked again")
    require(
        source.subset([0]).subset([0, 0]).fingerprint() != print_, "other images have the same fingerprint"
    )


def goes_to_workers(source: ImageSource) -> None:
    """It pickles, so that worker processes can read it: the copy gives the same images."""
    there: ImageSource = pickle.loads(pickle.dumps(source))
    require(there.fingerprint() == source.fingerprint(), "the copy has another fingerprint")
    require(
        np.array_equal(np.asarray(there.read(0)), np.asarray(source.read(0))), "the copy reads another image"
    )


CHECKS: Sequence[Callable[[ImageSource], None]] = (
    names_its_images,
    decodes_to_rgb,
    refuses_other_positions,
    labels_fit,
    has_a_fingerprint,
    goes_to_workers,
)


def _positions(source: ImageSource) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, len(source) - 1, min(len(source), _LOOKED_AT))})
