"""Pictures of finished runs: losses of clean and wrong labels, what networks look at, and what images stand on."""

from vision.pictures.cam import write_cam
from vision.pictures.correlation import write_correlation
from vision.pictures.losses import write_losses
from vision.pictures.masks import write_masks

__all__ = ["write_cam", "write_correlation", "write_losses", "write_masks"]
