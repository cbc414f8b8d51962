"""Diffusions from data to noise, and back."""
