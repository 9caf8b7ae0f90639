"""Defences that act at test time."""
