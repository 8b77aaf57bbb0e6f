"""What runs on the device: plan, fetch, verify, decode. Needs numpy and httpx, no torch."""
