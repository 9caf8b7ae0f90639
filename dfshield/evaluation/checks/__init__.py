"""Robustness checks, one function each: a case in, a finding out. Their table is `dfshield.registry.CHECKS`."""
