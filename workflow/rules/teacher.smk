# The trained classifier that everything starts from: trained here, published, or the user's own.


rule teacher:
    input:
        current("teacher", TEACHER),
    output:
        TEACHER,
    log:
        log_of(TEACHER),
    benchmark:
        benchmark_of(TEACHER)
    message:
        "Teacher {wildcards.dataset}/{wildcards.model} seed {wildcards.seed}"
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
        own=own,
        state=STATE,
    shell:
        "{params.dfshield} teacher --out {output} {params.model} {params.weights} {params.data}"
        " --state {params.state} {params.flags} --code {params.code} 2>&1 | tee {log}"
