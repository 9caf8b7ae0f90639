# Training data: synthesised from the teacher alone, in shards; by a generator that the teacher trains; out of another
# source, by mixing or masking its images; or, not data-free, another data set's images or the real training set itself.
SYNTHETIC = one_of(name for name, source in plan.config.sources.items() if source.kind == "synthetic")
GENERATED = one_of(name for name, source in plan.config.sources.items() if source.kind == "generator")
AUGMENTED = one_of(name for name, source in plan.config.sources.items() if source.kind == "augmented")
PUBLIC = one_of(name for name, source in plan.config.sources.items() if source.kind == "public")
REAL = one_of(name for name, source in plan.config.sources.items() if source.kind == "real")


rule synthesize:
    input:
        teacher=TEACHER,
    output:
        SHARD,
    log:
        log_of(SHARD),
    benchmark:
        benchmark_of(SHARD)
    message:
        "Synthesis {wildcards.dataset}/{wildcards.model}/{wildcards.source} seed {wildcards.seed}, shard {wildcards.shard}"
    wildcard_constraints:
        source=SYNTHETIC,
    priority: 3  # what others wait for goes first, so that no long chain is left to the end
    threads: cores("synthesis")
    resources:
        gpu=gpus("synthesis"),
        mem_mb=memory("synthesis"),
        runtime=minutes("synthesis"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        shards=lambda wildcards: len(shards(wildcards)),
        factory=factory_words,
        state=STATE,
        flags=flags("synthesis"),
        options=options("synthesis"),
        code=code("synthesis"),
    shell:
        "{params.dfshield} synthesize --teacher {input.teacher} --out {output} --source {wildcards.source}"
        " --shard {wildcards.shard} --shards {params.shards} {params.factory} --state {params.state}"
        " {params.flags} --code {params.code} 2>&1 | tee {log}"


rule merge:
    input:
        shards,
    output:
        DATA,
    log:
        log_of(DATA),
    benchmark:
        benchmark_of(DATA)
    message:
        "Merge {wildcards.dataset}/{wildcards.model}/{wildcards.source} seed {wildcards.seed}"
    wildcard_constraints:
        source=SYNTHETIC,
    priority: 3
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        code=code("merge"),
    shell:
        "{params.dfshield} merge {input} --out {output} 2>&1 | tee {log}"


rule generate:
    input:
        teacher=TEACHER,
    output:
        DATA,
    log:
        log_of(DATA),
    benchmark:
        benchmark_of(DATA)
    message:
        "Generation {wildcards.dataset}/{wildcards.model}/{wildcards.source} seed {wildcards.seed}"
    wildcard_constraints:
        source=GENERATED,
    priority: 3
    threads: cores("generation")
    resources:
        gpu=gpus("generation"),
        mem_mb=memory("generation"),
        runtime=minutes("generation"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        factory=factory_words,
        state=STATE,
        flags=flags("generation"),
        options=options("generation"),
        code=code("generation"),
    shell:
        "{params.dfshield} generate --teacher {input.teacher} --out {output} --source {wildcards.source}"
        " {params.factory} --state {params.state} {params.flags} --code {params.code} 2>&1 | tee {log}"


rule augment:
    input:
        base_data,
    output:
        DATA,
    log:
        log_of(DATA),
    benchmark:
        benchmark_of(DATA)
    message:
        "Augmentation {wildcards.dataset}/{wildcards.model}/{wildcards.source} seed {wildcards.seed}"
    wildcard_constraints:
        source=AUGMENTED,
    priority: 3
    threads: cores("augmentation")
    resources:
        mem_mb=memory("augmentation"),
        runtime=minutes("augmentation"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        flags=flags("augmentation"),
        options=options("augmentation"),
        code=code("augmentation"),
    shell:
        "{params.dfshield} augment --data {input} --out {output} --source {wildcards.source}"
        " {params.flags} --code {params.code} 2>&1 | tee {log}"


rule public:
    input:
        teacher=TEACHER,
    output:
        DATA,
    log:
        log_of(DATA),
    benchmark:
        benchmark_of(DATA)
    message:
        "Public data {wildcards.dataset}/{wildcards.model}/{wildcards.source} seed {wildcards.seed} (not data-free)"
    wildcard_constraints:
        source=PUBLIC,
        dataset=one_of(plan.config.datasets),
    priority: 3
    threads: cores("public")
    resources:
        gpu=gpus("public"),
        mem_mb=memory("public"),
        runtime=minutes("public"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        data=data_words,
        flags=flags("public"),
        options=options("public"),
        code=code("public"),
    shell:
        "{params.dfshield} public --teacher {input.teacher} --out {output} --source {wildcards.source}"
        " {params.data} {params.flags} --code {params.code} 2>&1 | tee {log}"


rule export:
    input:
        teacher=TEACHER,
    output:
        DATA,
    log:
        log_of(DATA),
    benchmark:
        benchmark_of(DATA)
    message:
        "Real training data {wildcards.dataset}/{wildcards.model}/{wildcards.source} (not data-free)"
    wildcard_constraints:
        source=REAL,
        dataset=one_of(plan.config.datasets),
    priority: 3
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        data=data_words,
        code=code("export"),
    shell:
        "{params.dfshield} export --dataset {wildcards.dataset} --teacher {input.teacher} --out {output}"
        " --source {wildcards.source} {params.data} --code {params.code} 2>&1 | tee {log}"
