"""Receive uploads and inspect them without decoding a pixel. Nothing here trusts its input."""
