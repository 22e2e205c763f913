"""runtime of tilewright."""
