"""What generated kernels for NVIDIA GPUs import; importing its modules imports numba-cuda."""
