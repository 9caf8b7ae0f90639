# The first real images that are read: attacks, one ledger per model and protocol; the diversity of training data, one
# record per surrogate set.


rule attack:
    input:
        model=attacked,
        images=evaluation_file,
    output:
        LEDGER,
    log:
        log_of(LEDGER),
    benchmark:
        benchmark_of(LEDGER)
    message:
        "Attack {wildcards.protocol} on {wildcards.dataset}/{wildcards.model}/{wildcards.source}/{wildcards.recipe}"
        " seed {wildcards.seed}"
    threads: cores("attack")
    resources:
        gpu=gpus("attack"),
        mem_mb=memory("attack"),
        runtime=minutes("attack"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        images=images_words,
        data=data_words,
        factory=factory_words,
        subject=subject,
        state=STATE,
        flags=flags("attack"),
        options=options("attack"),
        code=code("attack"),
    shell:
        "{params.dfshield} attack --model {input.model} --out {output} {params.images} {params.data}"
        " --protocol {wildcards.protocol} --subject {params.subject:q} {params.factory} --state {params.state}"
        " {params.flags} --code {params.code} 2>&1 | tee {log}"


rule diversity:
    input:
        teacher=TEACHER,
        data=DATA,
        vgg16=vgg16_file,
    output:
        DIVERSITY,
    log:
        log_of(DIVERSITY),
    benchmark:
        benchmark_of(DIVERSITY)
    message:
        "Diversity of {wildcards.dataset}/{wildcards.model}/{wildcards.source} seed {wildcards.seed}"
        " against the {wildcards.split} split"
    wildcard_constraints:
        dataset=one_of(plan.config.datasets),
    threads: cores("diversity")
    resources:
        gpu=gpus("diversity"),
        mem_mb=memory("diversity"),
        runtime=minutes("diversity"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        data=data_words,
        vgg16=vgg16_words,
        flags=flags("diversity"),
        options=options("diversity"),
        code=code("diversity"),
    shell:
        "{params.dfshield} diversity --teacher {input.teacher} --data {input.data} --out {output}"
        " --dataset {wildcards.dataset} {params.data} {params.flags} {params.vgg16} --code {params.code}"
        " 2>&1 | tee {log}"
