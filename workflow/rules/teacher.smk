# The trained classifier that everything starts from: trained here, published, or the user's own.


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


rule teacher:
    input:
        unpack(own_files),
    output:
        TEACHER,
    log:
        log_of(TEACHER),
    benchmark:
        benchmark_of(TEACHER)
    message:
        "Teacher {wildcards.dataset}/{wildcards.model}"
    priority: 4
    threads: cores("teacher")
    resources:
        **ask("teacher"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("teacher"),
        model=model_flags,
        weights=weights_flags,
        state=STATE,
    shell:
        "{params.dfshield} teacher --out {output} {params.model} {params.weights} {params.data}"
        " --state {params.state} {params.flags} --code {params.code} 2>&1 | tee {log}"
