"""fusion of tilewright."""
