"""ops of tilewright."""
