# What a reader gets: tables, and model cards of the user's own models.


rule table:
    input:
        lambda wildcards: ledgers(cells_of(wildcards.table)),
    output:
        csv=report(TABLE, caption="../report/table.rst", category="Tables"),
        markdown=Path(TABLE).with_suffix(".md"),
        latex=Path(TABLE).with_suffix(".tex"),
    log:
        log_of(TABLE),
    benchmark:
        benchmark_of(TABLE)
    message:
        "Table {wildcards.table}"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        config=CONFIG,
        content=lambda wildcards: table_content(wildcards.table),
        code=lambda wildcards: code_digest("table"),
    shell:
        "{params.dfshield} table {wildcards.table} --config {params.config} --out {output.csv} 2>&1 | tee {log}"


rule cost:
    input:
        measurements,
    output:
        csv=report(COST, caption="../report/cost.rst", category="Tables"),
        markdown=Path(COST).with_suffix(".md"),
        latex=Path(COST).with_suffix(".tex"),
    log:
        log_of(COST),
    message:
        "Cost of every method"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        config=CONFIG,
        code=lambda wildcards: code_digest("cost"),
    shell:
        "{params.dfshield} cost --config {params.config} --out {output.csv} 2>&1 | tee {log}"


rule model_card:
    input:
        unpack(card_files),
    output:
        card=CARD,
        model=Path(CARD).with_name("model.safetensors"),
        report=Path(CARD).with_name("report.csv"),
    log:
        log_of(CARD),
    benchmark:
        benchmark_of(CARD)
    message:
        "Hardened model {wildcards.name}"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    conda:
        "../../envs/dfshield.yaml"
    params:
        dfshield=program,
        config=CONFIG,
        folder=lambda wildcards, output: Path(output.card).parent,
        code=lambda wildcards: code_digest("card"),
    shell:
        "{params.dfshield} harden {wildcards.name} --config {params.config} --student {input.student}"
        " --out {params.folder} 2>&1 | tee {log}"
