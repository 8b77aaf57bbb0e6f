"""Uploaded data sets: received, and inspected without decoding a pixel. Nothing here trusts its input."""
