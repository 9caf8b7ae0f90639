# Inputs and flags of the rules that depend on what a job is of.


def own_files(wildcards):
    """What a user's own model is made of: weights and, where it is a file, the factory's code."""
    own = plan.subject(wildcards.dataset, wildcards.model)
    if not own.own:
        return {}
    place = own.factory.rpartition(":")[0]
    return {"weights": below_data(own.weights)} | ({"factory": place} if place.endswith(".py") else {})


def model_flags(wildcards):
    """What the teacher stage is to make: a registered model, or the user's own."""
    flags = ["--dataset", wildcards.dataset, "--model", wildcards.model]
    own = plan.subject(wildcards.dataset, wildcards.model)
    if own.own:
        flags += ["--factory", own.factory, "--arguments", canonical_json(dict(own.arguments))]
        flags += ["--input-shape", *own.input_shape, "--classes", own.classes, "--mean", *own.mean, "--std", *own.std]
    return shlex.join(map(str, flags))


def weights_flags(wildcards, input):
    return f"--weights {shlex.quote(input.weights)}" if wildcards.dataset == HARDEN else ""


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


def attacked(wildcards):
    """The checkpoint to attack: the teacher itself where nothing was trained."""
    return (TEACHER if wildcards.recipe == NONE else STUDENT).format(**wildcards)


def evaluation_file(wildcards):
    """A user's own evaluation set."""
    own = plan.subject(wildcards.dataset, wildcards.model).evaluation
    return below_data(own.file) if own else []


def images_flags(wildcards, input):
    return f"--evaluation {shlex.quote(input.images)}" if input.images else f"--dataset {wildcards.dataset}"


def subject(wildcards):
    """What is attacked, for the ledger."""
    fields = ("dataset", "model", "source", "recipe", "train_threat")
    return canonical_json({field: wildcards[field] for field in fields} | {"seed": int(wildcards.seed)})


def defence_flags(wildcards):
    """A defence at test time with its options."""
    own = plan.defence(wildcards.defence)
    values = canonical_json(own.described()) if own else ""
    return f"--defence {shlex.quote(values)}" if own else ""


def vgg16_file(wildcards):
    """Weights of VGG16, where features of it are compared."""
    options = job_options("diversity", wildcards)
    return below_data(Path(options.vgg16)) if "vgg16" in (options.features, options.bin_features) else []


def vgg16_flags(wildcards, input):
    return f"--vgg16 {shlex.quote(input.vgg16)}" if input.vgg16 else ""
