"""How tensors are computed: CUDA graphs, batch sizes, precision, random streams."""
