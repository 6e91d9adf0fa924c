"""Where images come from: folders, list files, parquet files and built-in sets, all behind one `open_source`."""

from glocal.data.arrays import ArraySource
from glocal.data.builtin import PhotoSource, TileSource, open_digits
from glocal.data.cifar import CifarSource, open_cifar
from glocal.data.decoding import IMAGE_SUFFIXES, decode_image, decode_mask
from glocal.data.folder import FileSource, open_folder
from glocal.data.listing import open_list
from glocal.data.named_sets import NAMED_SETS
from glocal.data.open import open_role, open_source, splits_of
from glocal.data.parquet import ParquetSource, open_parquet
from glocal.data.source import ImageSource, Subset, hold_out
from glocal.errors import DataError, UnreadableImageError

__all__ = [
    "IMAGE_SUFFIXES",
    "NAMED_SETS",
    "ArraySource",
    "CifarSource",
    "DataError",
    "FileSource",
    "ImageSource",
    "ParquetSource",
    "PhotoSource",
    "Subset",
    "TileSource",
    "UnreadableImageError",
    "decode_image",
    "decode_mask",
    "hold_out",
    "open_cifar",
    "open_digits",
    "open_folder",
    "open_list",
    "open_parquet",
    "open_role",
    "open_source",
    "splits_of",
]
