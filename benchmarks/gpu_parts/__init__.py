"""What `benchmarks/gpu.py` measures on a GPU: a file for each part, and what runs them."""
