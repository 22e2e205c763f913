"""loops of tilewright."""
