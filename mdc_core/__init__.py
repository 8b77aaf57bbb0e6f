"""Multisize Dataset Condensation: the algorithm and the delivery format. No web, SQL or message broker."""

__version__ = "0.1.0"
"""Version of the whole project."""
