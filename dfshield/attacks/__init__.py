"""Attacks: functions from images to perturbed images."""
