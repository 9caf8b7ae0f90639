# Students: a copy of the teacher fine-tuned adversarially on a training set, or trained beside a generator.


rule train:
    input:
        current("train", STUDENT),
        teacher=own_teacher,
        data=DATA,
    output:
        student=STUDENT,
        metrics=METRICS,
    log:
        log_of(STUDENT),
    benchmark:
        benchmark_of(STUDENT)
    message:
        "Training {wildcards.dataset}/{wildcards.model}/{wildcards.source}/{wildcards.recipe} seed {wildcards.seed}"
    wildcard_constraints:
        source=one_of(plan.sources),
        recipe=recipes("train"),
    priority: 2  # what others wait for goes first, so that no long chain is left to the end
    threads: cores("train")
    resources:
        **ask("train"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("train"),
        factory=factory_flags,
        state=STATE,
    shell:
        "{params.dfshield} train --teacher {input.teacher} --data {input.data} --out {output.student}"
        " --metrics {output.metrics} --recipe {wildcards.recipe} {params.factory} --state {params.state}"
        " {params.flags} --code {params.code} 2>&1 | tee {log}"


rule cotrain:
    input:
        current("cotrain", STUDENT),
        teacher=own_teacher,
    output:
        student=STUDENT,
        metrics=METRICS,
        images=IMAGES,
    log:
        log_of(STUDENT),
    benchmark:
        benchmark_of(STUDENT)
    message:
        "Co-training {wildcards.dataset}/{wildcards.model}/{wildcards.recipe} seed {wildcards.seed}"
    wildcard_constraints:
        source=NONE,
        recipe=recipes("cotrain"),
    priority: 2
    threads: cores("cotrain")
    resources:
        **ask("cotrain"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("cotrain"),
        factory=factory_flags,
        state=STATE,
    shell:
        "{params.dfshield} cotrain --teacher {input.teacher} --out {output.student} --images-out {output.images}"
        " --metrics {output.metrics} --recipe {wildcards.recipe} {params.factory} --state {params.state}"
        " {params.flags} --code {params.code} 2>&1 | tee {log}"
