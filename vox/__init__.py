"""VoxCPM (arXiv 2509.24650) rebuilt in the open: one short module per box of the paper."""

__version__ = "0.1.0"
