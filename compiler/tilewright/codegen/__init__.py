"""codegen of tilewright."""
