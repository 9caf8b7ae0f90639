# Inputs and flags of the rules that depend on what a job is of.
#
# Files of the user are no inputs: where they lie is no reason to run again, their content is.
import json


def own(wildcards):
    """What a user's own model is made of, by content."""
    return usable(own_model, plan.config, plan.subject(wildcards.dataset, wildcards.model))


def usable(read, *given):
    """What `read` makes of what it is given; one line if it refuses."""
    try:
        return read(*given)
    except InputError as error:
        raise WorkflowError(str(error))


def model_flags(wildcards, threads):
    """What the teacher stage is to make: a registered model, or the user's own."""
    flags = ["--dataset", wildcards.dataset, "--model", wildcards.model]
    own = plan.subject(wildcards.dataset, wildcards.model)
    if own.own:
        flags += ["--factory", own.factory, "--arguments", json.dumps(dict(own.arguments))]
        flags += ["--input-shape", *own.input_shape, "--classes", own.classes, "--mean", *own.mean, "--std", *own.std]
    return shlex.join(map(str, flags))


def weights_flags(wildcards, threads):
    weights = plan.subject(wildcards.dataset, wildcards.model).weights
    return f"--weights {shlex.quote(str(below_data(plan.config, weights)))}" if weights else ""


def sources(stage):
    """Names of the training sets that a stage makes."""
    return one_of(name for name, choice in plan.sources.items() if choice.stage == stage)


def shards(wildcards):
    """Shards of a synthetic training set."""
    return plan.shards(Place.of(dict(wildcards.items())))


def base_data(wildcards):
    """The training set that an augmented one is made of."""
    return Place.of(dict(wildcards.items())).at(source=plan.sources[wildcards.source].base).path(DATA)


def recipes(stage):
    """Names of the recipes of a stage, swept ones included."""
    return one_of(recipe for recipe in plan.recipes if plan.recipe_stage(recipe) == stage)


def own_teacher(wildcards):
    """The teacher of a job: the one of its seed, or the one of all seeds."""
    return usable(plan.teacher, Place.of(dict(wildcards.items()))).path(TEACHER)


def attacked(wildcards):
    """The checkpoint to attack: the teacher itself where nothing was trained."""
    return usable(plan.checkpoint, Place.of(dict(wildcards.items())))


def other_models(wildcards):
    """Checkpoints of the further models that the attack needs."""
    return [plan.checkpoint(place) for place in others(plan, Place.of(dict(wildcards.items()))).values()]


def other_flags(wildcards):
    """The further models that the attack needs, by name."""
    found = others(plan, Place.of(dict(wildcards.items())))
    return " ".join(f"--other {name}={plan.checkpoint(place)}" for name, place in found.items())


def checks_ledgers(wildcards):
    """The ledgers that robustness checks read."""
    return [place.path(LEDGER) for place in checked_ledgers(plan, Place.of(dict(wildcards.items())))]


def checks_inputs(wildcards):
    """What robustness checks read besides the checkpoint: ledgers, and the classifier that they transfer from."""
    others = checks_others(plan, Place.of(dict(wildcards.items())))
    return [*checks_ledgers(wildcards), *map(plan.checkpoint, others.values()), *fit(wildcards)]


def checks_flags(wildcards):
    """The files of robustness checks; metrics are written with the student, so they are no input of their own."""
    others = checks_others(plan, Place.of(dict(wildcards.items())))
    words = [f"--ledger {path}" for path in checks_ledgers(wildcards)]
    words += [f"--other {name}={plan.checkpoint(place)}" for name, place in others.items()]
    words += [f"--metrics {METRICS.format(**wildcards)}"] if wildcards.recipe != NONE else []
    return " ".join(words)


def checklist_records(wildcards):
    """The records of robustness checks of all models of the config."""
    if not plan.config.checked:
        raise WorkflowError("this config asks for no robustness checks; add checked: [pgd10, autoattack]")
    return all_checks(plan)


def evaluation_file(wildcards):
    """A user's own evaluation set; None for that of a registered data set."""
    evaluation = plan.subject(wildcards.dataset, wildcards.model).evaluation
    return below_data(plan.config, evaluation.file) if evaluation else None


def images_flags(wildcards, threads):
    file = evaluation_file(wildcards)
    return f"--evaluation {shlex.quote(str(file))}" if file else f"--dataset {wildcards.dataset}"


def images_sha256(wildcards):
    file = evaluation_file(wildcards)
    return usable(sha256_of, file) if file else ""


def subject(wildcards):
    """What is attacked, for the ledger."""
    fields = ("dataset", "model", "source", "recipe", "train_threat")
    return canonical_json({field: wildcards[field] for field in fields} | {"seed": int(wildcards.seed)})


def defence_flags(wildcards):
    """A defence at test time with its options, and what its fit has kept."""
    own = plan.defence(wildcards.defence)
    values = canonical_json(own.described()) if own else ""
    words = [f"--defence {shlex.quote(values)}"] if own else []
    return " ".join([*words, *(f"--fitted {path}" for path in fit(wildcards))])


def fit(wildcards):
    """What the fit of a defence has kept; nothing where there is nothing to fit."""
    return [DEFENCE.format(**wildcards)] if plan.fitted(wildcards.defence) else []


def fitting_data(wildcards):
    """The training set that a defence is fitted on."""
    return usable(plan.fitting, Place.of(dict(wildcards.items()))).path(DATA)


def fitted():
    """Names of the defences that are fitted."""
    return one_of(name for name in plan.config.choices["defences"] if plan.fitted(name))


def defences(stage, *names):
    """Names of the defences of a stage, or of those among them that are one of some entries."""
    known = plan.config.choices["defences"].items()
    return one_of(name for name, own in known if own.stage == stage and (not names or own.name in names))


def smoothings():
    """Names of the defences that can be certified."""
    return defences("defend", "smoothing")


def detectors():
    """Names of the detectors."""
    return defences("detect")


def vgg16_file(wildcards):
    """Weights of VGG16, where features of it are compared."""
    options = job_options("diversity", wildcards)
    return below_data(plan.config, options.vgg16) if "vgg16" in (options.features, options.bin_features) else None


def vgg16_flags(wildcards, threads):
    file = vgg16_file(wildcards)
    return f"--vgg16 {shlex.quote(str(file))}" if file else ""


def vgg16_sha256(wildcards):
    file = vgg16_file(wildcards)
    return usable(sha256_of, file) if file else ""
