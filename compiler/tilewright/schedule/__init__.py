"""schedule of tilewright."""
