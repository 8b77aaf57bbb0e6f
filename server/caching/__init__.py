"""Bounded memories for what was answered a moment ago."""
