"""Looking at compiled models: the demo."""
