"""Looking at compiled models: the command `tilewright bench`, and the demo."""
