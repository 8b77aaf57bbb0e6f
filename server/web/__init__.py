"""HTTP: problem responses, conditional requests, cross-origin rules, bounded connections."""
