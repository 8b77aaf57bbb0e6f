"""Multisize Dataset Condensation: the algorithm and the delivery format. Knows no web, no SQL, no broker."""
