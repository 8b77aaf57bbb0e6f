"""Everything that devices receive or use: file format, manifests, signatures, budgets. No torch."""
