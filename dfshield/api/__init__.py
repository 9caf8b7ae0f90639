"""Hardening from Python, in one process: without Snakemake, a checkout or a config file."""
