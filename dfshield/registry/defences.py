"""Defences that act at test time."""

from dataclasses import dataclass

from dfshield.registry.entry import Entry, RealData


@dataclass(frozen=True)
class Defence(Entry):
    """A subclass of ``dfshield.defences.defence.Defence``, and which real data it has seen."""

    real_data: RealData = "none"


DEFENCES = {
    "identity": Defence("dfshield.defences.defence:Identity", "No defence", about="the model itself"),
    "tte": Defence(
        "dfshield.defences.tte:TestTimeEnsemble",
        "TTE",
        about="mean logits over crops and mirror images (Pérez et al. 2021)",
        options="dfshield.options.defences:Tte",
    ),
}
