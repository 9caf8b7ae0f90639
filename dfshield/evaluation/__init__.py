"""Stages that read real data to judge: attacks with their ledger, diversity with its record."""
