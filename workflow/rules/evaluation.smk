# Attacks on real images, the first that are read: one ledger per model and protocol.


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
    retries: 1  # it goes on where it stopped
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
