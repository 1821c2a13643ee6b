"""The shared ground of a book that rebuilds five papers on finding cell nuclei."""

__version__ = "0.1.0"
