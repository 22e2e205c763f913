"""graph of tilewright."""
