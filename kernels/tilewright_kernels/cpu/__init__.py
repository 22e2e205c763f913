"""Numba intrinsics for CPU kernels: pointers, scalar functions, register tiles."""
