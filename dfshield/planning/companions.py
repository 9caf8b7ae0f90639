"""What an evaluation takes besides the attacked classifier: other classifiers, and ledgers for the checks."""

from dfshield import registry
from dfshield.core.threat import threat_name
from dfshield.options.attacks import GUIDE
from dfshield.planning.choices import SURROGATE
from dfshield.planning.paths import NONE, Place
from dfshield.planning.settings import Settings


def others(plan: Settings, place: Place) -> dict[str, Place]:
    """The further classifiers, by name, that the attack of a protocol needs on the classifier at `place`.

    They are of the same data set, model and seed. A place without a recipe is the teacher.
    """
    needs = registry.ATTACKS[plan.protocols[place.protocol].name].needs
    return {need: _other(plan, place, need) for need in needs if need != GUIDE}


def _other(plan: Settings, place: Place, need: str) -> Place:
    source, _, recipe = plan.protocols[place.protocol].surrogate.partition("/") if need == SURROGATE else ("", "", "")
    if not recipe:
        return plan.teacher(place)
    trained = place.threat if place.train_threat == NONE else place.train_threat
    return plan.teacher(place).at(source=source, recipe=recipe, train_threat=trained, seed=place.seed)


def own_surrogate(plan: Settings, place: Place) -> bool:
    """Whether the attack of a protocol would be crafted on the very classifier that it attacks: no transfer at all.

    Behind a defence the same classifier is another one.
    """
    surrogate = others(plan, place).get(SURROGATE)
    same = surrogate is not None and plan.checkpoint(surrogate) == plan.checkpoint(place)
    return same and place.defence == NONE


def checked_ledgers(plan: Settings, place: Place) -> list[Place]:
    """The ledgers that the robustness checks of the classifier at `place` read: the config's ``checked`` protocols."""
    threats = ((name, plan.protocols[name].threat) for name in plan.config.checked)
    ledgers = [place.at(protocol=name, threat=threat_name(own) if own else place.threat) for name, own in threats]
    return [ledger for ledger in ledgers if not own_surrogate(plan, ledger)]


def checks_others(plan: Settings, place: Place) -> dict[str, Place]:
    """The classifier that the checks transfer an attack from: the teacher, for all that is not the teacher itself."""
    return {} if place.recipe == NONE else {SURROGATE: plan.teacher(place)}
