"""Kernels on NVIDIA GPUs. Nothing here is imported before the target is asked for."""
