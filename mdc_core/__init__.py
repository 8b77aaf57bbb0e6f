"""Multisize Dataset Condensation: the algorithm and the delivery format. Knows no web, no SQL, no broker."""

__version__ = "0.1.0"
"""Of the whole project."""
