"""What devices receive: the file format, manifests, signatures, budgets. No torch."""
