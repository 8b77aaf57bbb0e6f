"""Delivery of published sets: which bytes, with which headers, from where."""
