"""Defences that act at test time."""

from dfshield.registry.base import Entry

DEFENCES = {"tte": Entry("dfshield.defences.tte:Tte", "TTE", options="dfshield.options.defences:Tte")}
