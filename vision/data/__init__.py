"""Labelled images: read from anything, kept as one uint8 tensor, indexed by row."""

from vision.data import bias
from vision.data.images import ImageData, LazyImages
from vision.data.loading import from_arrays, load, test_splits
from vision.data.named import names
from vision.data.splits import split

__all__ = ["ImageData", "LazyImages", "bias", "from_arrays", "load", "names", "split", "test_splits"]
