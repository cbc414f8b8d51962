"""The cases of ordinary differential equations."""
