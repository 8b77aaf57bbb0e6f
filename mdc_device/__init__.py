"""The device side: plan, fetch, grow, shrink, verify and decode. Needs numpy, httpx and cryptography, but no torch."""
