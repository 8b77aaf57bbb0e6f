"""What runs on the device: plan, fetch, grow, shrink, verify, decode. Needs numpy, httpx, cryptography; no torch."""
