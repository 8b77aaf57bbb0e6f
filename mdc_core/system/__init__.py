"""This process and its machine: files, memory, parents, and how commands end. No torch."""
