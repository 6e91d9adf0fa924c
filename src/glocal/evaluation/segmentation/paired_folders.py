"""Folders where every image file has a mask file: VOC, ADE20K, Cityscapes and one's own in the same form.

A layout says where files are. What their values mean is another matter: only the published sets themselves, told by the
names of their files, have the published classes; a folder of one's own in VOC's form has the classes of its data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, Integer
from PIL import Image

from glocal.data.decoding import IMAGE_SUFFIXES, decode_image, decode_mask
from glocal.data.folder import file_prints
from glocal.data.source import ImageSource
from glocal.errors import DataError


class PairedFolders(ImageSource):
    """Images and masks as files of the same order. Palette masks give their indices, never their colours.

    Args:
        name: for people.
        root: folder that both kinds of path are relative to.
        images: image paths.
        masks: mask paths, one an image; empty when only images are wanted.
        boxes: VOC annotation files (`.xml`), one an image, or empty.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        images: Sequence[str],
        masks: Sequence[str] = (),
        boxes: Sequence[str] = (),
    ) -> None:
        self.name, self.root = name, root
        # Arrays rather than lists: a worker process copies them as one block.
        self.images, self.masks, self.boxes = (np.array(paths, np.str_) for paths in (images, masks, boxes))
        self.labels, self.class_names = None, None
        self.has_masks = len(self.masks) > 0

    def __len__(self) -> int:
        return len(self.images)

    def key(self, index: int) -> str:
        """Path below the root."""
        return str(self.images[index])

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one image as RGB.

        Raises:
            UnreadableImageError: when it can't be decoded.
        """
        return decode_image(self.root / self.key(index), at_least, name=self.key(index))

    def read_mask(self, index: int) -> Integer[np.ndarray, "h w"]:
        """Decode one mask to its values.

        Raises:
            UnreadableImageError: when it can't be decoded.
        """
        path = str(self.masks[index])
        return decode_mask(self.root / path, name=path)

    def read_boxes(self, index: int) -> Float[np.ndarray, "boxes 4"]:
        """Object boxes of a VOC annotation: left, top, right, bottom in pixels from 0, right and bottom exclusive.

        Raises:
            DataError: when the file can't be parsed.
        """
        path = self.root / str(self.boxes[index])
        try:
            elements = ElementTree.parse(path).findall(".//object/bndbox")
            corners = [
                [float(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax")] for box in elements
            ]
        except (OSError, ElementTree.ParseError, ValueError) as error:
            raise DataError(f"The boxes of {self.key(index)} can't be read from {path}: {error}.") from error
        # VOC counts pixels from 1 and includes the last.
        boxes: np.ndarray = np.array(corners, float).reshape(-1, 4) - np.array([1, 1, 0, 0])
        return boxes

    def fingerprint(self) -> str:
        """Names, sizes and some of the content of images, masks and box files."""
        return self._prints()[0]

    def state(self) -> str:
        """The fingerprint, and when each of these files was last written."""
        return self._prints()[1]

    def _prints(self) -> tuple[str, str]:
        paths = [str(path) for path in (*self.images, *self.masks, *self.boxes)]
        return file_prints([str(self.root / path) for path in paths], "\n".join(paths).encode())


def open_paired_folders(path: Path, splits: Sequence[str]) -> tuple[PairedFolders, str | None] | None:
    """Open a tree of images and masks, and say which published set it is, if any; None when `path` holds no such tree.

    Understood are the trees of VOC, ADE20K and Cityscapes, and folders `images/` and `masks/` with files of the same
    names, each split into `train/`, `val/`, `test/` above or below these, or not at all (then all are one split).

    Args:
        path: the tree's own folder or the one above (`VOCdevkit`, ...).
        splits: `train`, `val` and so on, the first that exists is taken. VOC's `trainaug` goes before `train` where
            its list and masks (`SegmentationClassAug`) are there.

    Raises:
        DataError: when the tree is there but none of the splits, or a split without files.
    """
    for candidate in [
        path,
        *(path / name for name in ("VOC2012", "VOCdevkit/VOC2012", "ADEChallengeData2016")),
    ]:
        for layout, (marker, opener) in _OPENERS.items():
            if (candidate / marker).is_dir():
                for split in splits:
                    folders = opener(candidate, split)
                    if folders is not None:
                        return _not_empty(folders), layout if _is_published(folders, layout) else None
                raise DataError(
                    f"{candidate} has the {layout} layout but none of the splits {', '.join(splits)}."
                )
    plain = _open_plain(path, splits)
    return None if plain is None else (_not_empty(plain), None)


def class_names_beside(folder: Path) -> list[str] | None:
    """Names of mask values from 0, a line each, in `classes.txt`, `class_names.txt` or CVAT's `labelmap.txt`."""
    for name in ("classes.txt", "class_names.txt", "labelmap.txt"):
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()
            return [line.split(":")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return None


def _is_published(source: PairedFolders, layout: str) -> bool:
    """Whether folder or files have the names of the published set; one's own folder in its form rarely has."""
    folder, file = _PUBLISHED[layout]
    return bool(re.fullmatch(folder, source.root.resolve().name)) or all(
        re.fullmatch(file, PurePath(str(path)).stem) for path in source.images
    )


def _open_plain(root: Path, splits: Sequence[str]) -> PairedFolders | None:
    """Pairs of equal names below `images/` and `masks/`; an image without a mask is left out, which the name says."""
    for split in (*splits, ""):
        for images, masks in ((f"images/{split}", f"masks/{split}"), (f"{split}/images", f"{split}/masks")):
            if (root / images).is_dir() and (root / masks).is_dir() and (split or not _has_splits(root)):
                files = {file.stem: file for file in sorted((root / masks).iterdir()) if file.is_file()}
                seen = [
                    f for f in sorted((root / images).iterdir()) if f.suffix[1:].lower() in IMAGE_SUFFIXES
                ]
                pairs = [(file, files[file.stem]) for file in seen if file.stem in files]
                lost = len(seen) - len(pairs)
                name = f"{root.resolve().name}{f'/{split}' if split else ''}" + (
                    f" ({lost} without a mask)" if lost else ""
                )
                opened = [
                    [str(file.relative_to(root)) for file in column] for column in zip(*pairs, strict=True)
                ]
                return PairedFolders(name, root, *(opened or [[], []]))
    return None


def _has_splits(root: Path) -> bool:
    return any((root / "images" / split).is_dir() for split in ("train", "val", "test"))


def open_voc_boxes(path: Path, split: str = "trainval") -> PairedFolders | None:
    """Open the images of a VOC detection split with their boxes (no masks); None when `path` is no such tree.

    Raises:
        DataError: when the split lists no images.
    """
    for name in ("", "VOC2012", "VOC2007", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007"):
        candidate = path / name
        file = candidate / f"ImageSets/Main/{split}.txt"
        if (candidate / "Annotations").is_dir() and file.is_file():
            names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
            images, boxes = [f"JPEGImages/{n}.jpg" for n in names], [f"Annotations/{n}.xml" for n in names]
            return _not_empty(PairedFolders(f"{candidate.name}/{split}", candidate, images, (), boxes))
    return None


def _open_voc(root: Path, split: str) -> PairedFolders | None:
    lists, masks = root / "ImageSets/Segmentation", "SegmentationClass"
    if split == "train" and (lists / "trainaug.txt").is_file() and (root / "SegmentationClassAug").is_dir():
        split, masks = "trainaug", "SegmentationClassAug"
    file = lists / f"{split}.txt"
    if not file.is_file():
        return None
    names = [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    boxes = [f"Annotations/{name}.xml" for name in names] if (root / "Annotations").is_dir() else []
    images, targets = [f"JPEGImages/{name}.jpg" for name in names], [f"{masks}/{name}.png" for name in names]
    return PairedFolders(f"{root.name}/{split}", root, images, targets, boxes)


def _open_ade20k(root: Path, split: str) -> PairedFolders | None:
    folder = {"train": "training", "val": "validation"}.get(split, split)
    if not (root / "images" / folder).is_dir():
        return None
    names = sorted(file.stem for file in (root / "images" / folder).glob("*.jpg"))
    images, masks = (
        [f"images/{folder}/{n}.jpg" for n in names],
        [f"annotations/{folder}/{n}.png" for n in names],
    )
    return PairedFolders(f"{root.name}/{folder}", root, images, masks)


def _open_cityscapes(root: Path, split: str) -> PairedFolders | None:
    # The public test split has masks without labels: scoring it would score nothing.
    if split == "test" or not (root / "leftImg8bit" / split).is_dir():
        return None
    ending = "_leftImg8bit.png"
    files = sorted((root / "leftImg8bit" / split).glob(f"*/*{ending}"))
    names = [f"{split}/{file.parent.name}/{file.name.removesuffix(ending)}" for file in files]
    images, masks = (
        [f"leftImg8bit/{n}{ending}" for n in names],
        [f"gtFine/{n}_gtFine_labelIds.png" for n in names],
    )
    return PairedFolders(f"{root.name}/{split}", root, images, masks)


_PUBLISHED = {
    "voc": (r"VOC20\d\d", r"\d{4}_\d{6}|\d{6}"),
    "ade20k": (r"ADEChallengeData2016", r"ADE_(train|val|test)_\d+"),
    "cityscapes": (r".*", r".*"),  # nobody else names folders leftImg8bit/ and gtFine/
}
"""What the folder and the files of each published set are called."""

_OPENERS = {
    "voc": ("SegmentationClass", _open_voc),
    "ade20k": ("annotations/validation", _open_ade20k),
    "cityscapes": ("leftImg8bit", _open_cityscapes),
}


def _not_empty(source: PairedFolders) -> PairedFolders:
    if len(source) == 0:
        raise DataError(
            f"{source.name} in {source.root} lists no images. Check that the download is complete."
        )
    return source
