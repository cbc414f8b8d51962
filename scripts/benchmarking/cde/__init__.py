"""The cases of controlled differential equations."""
