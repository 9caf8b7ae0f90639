# Training sets: synthesised from the teacher alone, in shards; by a generator that the teacher trains; out of another
# set, by mixing or masking its images; or, not data-free, another data set's images or the real training set itself.


rule synthesize:
    input:
        current("synthesize", SHARD),
        teacher=own_teacher,
    output:
        SHARD,
    log:
        log_of(SHARD),
    benchmark:
        benchmark_of(SHARD)
    message:
        "Synthesis {wildcards.dataset}/{wildcards.model}/{wildcards.source} seed {wildcards.seed}, shard {wildcards.shard}"
    wildcard_constraints:
        source=sources("synthesize"),
    priority: 3  # what others wait for goes first, so that no long chain is left to the end
    threads: cores("synthesize")
    resources:
        **ask("synthesize"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("synthesize"),
        shards=lambda wildcards: len(shards(wildcards)),
        factory=factory_flags,
        state=STATE,
    shell:
        "{params.dfshield} synthesize --teacher {input.teacher} --out {output} --source {wildcards.source}"
        " --shard {wildcards.shard} --shards {params.shards} {params.factory} --state {params.state}"
        " {params.flags} --code {params.code} 2>&1 | tee {log}"


rule merge:
    input:
        current("merge", DATA),
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
        source=sources("synthesize"),
    priority: 3
    threads: 1
    resources:
        **ask("merge"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("merge"),
    shell:
        "{params.dfshield} merge {input} --out {output} 2>&1 | tee {log}"


rule generate:
    input:
        current("generate", DATA),
        teacher=own_teacher,
    output:
        DATA,
    log:
        log_of(DATA),
    benchmark:
        benchmark_of(DATA)
    message:
        "Generation {wildcards.dataset}/{wildcards.model}/{wildcards.source} seed {wildcards.seed}"
    wildcard_constraints:
        source=sources("generate"),
    priority: 3
    threads: cores("generate")
    resources:
        **ask("generate"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("generate"),
        factory=factory_flags,
        state=STATE,
    shell:
        "{params.dfshield} generate --teacher {input.teacher} --out {output} --source {wildcards.source}"
        " {params.factory} --state {params.state} {params.flags} --code {params.code} 2>&1 | tee {log}"


rule augment:
    input:
        current("augment", DATA),
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
        source=sources("augment"),
    priority: 3
    threads: cores("augment")
    resources:
        **ask("augment"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("augment"),
    shell:
        "{params.dfshield} augment --data {input} --out {output} --source {wildcards.source}"
        " {params.flags} --code {params.code} 2>&1 | tee {log}"


rule public:
    input:
        current("public", DATA),
        teacher=own_teacher,
    output:
        DATA,
    log:
        log_of(DATA),
    benchmark:
        benchmark_of(DATA)
    message:
        "Public data {wildcards.dataset}/{wildcards.model}/{wildcards.source} seed {wildcards.seed} (not data-free)"
    wildcard_constraints:
        source=sources("public"),
        dataset=one_of(plan.config.datasets),
    priority: 3
    threads: cores("public")
    resources:
        **ask("public"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("public"),
    shell:
        "{params.dfshield} public --teacher {input.teacher} --out {output} --source {wildcards.source}"
        " {params.data} {params.flags} --code {params.code} 2>&1 | tee {log}"


rule export:
    input:
        current("export", DATA),
        teacher=own_teacher,
    output:
        DATA,
    log:
        log_of(DATA),
    benchmark:
        benchmark_of(DATA)
    message:
        "Real training data {wildcards.dataset}/{wildcards.model}/{wildcards.source} (not data-free)"
    wildcard_constraints:
        source=sources("export"),
        dataset=one_of(plan.config.datasets),
    priority: 3
    threads: 1
    resources:
        **ask("export"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("export"),
    shell:
        "{params.dfshield} export --dataset {wildcards.dataset} --teacher {input.teacher} --out {output}"
        " --source {wildcards.source} {params.data} --code {params.code} 2>&1 | tee {log}"
