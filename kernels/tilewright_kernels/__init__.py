"""What generated kernels import. Nothing here imports the compiler."""
