"""recdenoise: train through labels that lie, on RecBole recommenders and on images."""

__version__ = "0.1.0"
