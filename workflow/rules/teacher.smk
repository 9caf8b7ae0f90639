# The trained classifier that everything starts from: trained here, published, or the user's own.


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
        gpu=gpus("teacher"),
        mem_mb=memory("teacher"),
        runtime=minutes("teacher"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        model=model_words,
        weights=weights_words,
        data=data_words,
        flags=flags("teacher"),
        options=options("teacher"),
        code=code("teacher"),
    shell:
        "{params.dfshield} teacher --out {output} {params.model} {params.weights} {params.data}"
        " {params.flags} --code {params.code} 2>&1 | tee {log}"
