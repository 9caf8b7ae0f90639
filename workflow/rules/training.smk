# Students: a copy of the teacher fine-tuned adversarially on the training data, or trained beside a generator.


rule train:
    input:
        teacher=TEACHER,
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
        source=one_of(plan.config.sources),
        recipe=one_of(recipe for recipe in plan.recipes if not plan.cotrained(recipe)),
    priority: 2  # what others wait for goes first, so that no long chain is left to the end
    threads: cores("training")
    resources:
        gpu=gpus("training"),
        mem_mb=memory("training"),
        runtime=minutes("training"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        factory=factory_words,
        state=STATE,
        flags=flags("training"),
        options=options("training"),
        code=code("training"),
    shell:
        "{params.dfshield} train --teacher {input.teacher} --data {input.data} --out {output.student}"
        " --metrics {output.metrics} --recipe {wildcards.recipe} {params.factory} --state {params.state}"
        " {params.flags} --code {params.code} 2>&1 | tee {log}"


rule cotrain:
    input:
        teacher=TEACHER,
    output:
        student=STUDENT,
        metrics=METRICS,
    log:
        log_of(STUDENT),
    benchmark:
        benchmark_of(STUDENT)
    message:
        "Co-training {wildcards.dataset}/{wildcards.model}/{wildcards.recipe} seed {wildcards.seed}"
    wildcard_constraints:
        source=NONE,
        recipe=one_of(filter(plan.cotrained, plan.recipes)),
    priority: 2  # what others wait for goes first, so that no long chain is left to the end
    threads: cores("cotraining")
    resources:
        gpu=gpus("cotraining"),
        mem_mb=memory("cotraining"),
        runtime=minutes("cotraining"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        factory=factory_words,
        state=STATE,
        flags=flags("cotraining"),
        options=options("cotraining"),
        code=code("cotraining"),
    shell:
        "{params.dfshield} cotrain --teacher {input.teacher} --out {output.student}"
        " --metrics {output.metrics} --recipe {wildcards.recipe} {params.factory} --state {params.state}"
        " {params.flags} --code {params.code} 2>&1 | tee {log}"
