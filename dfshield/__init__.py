"""Harden a trained image classifier against adversarial attack without its training data."""

__version__ = "0.1.0"
