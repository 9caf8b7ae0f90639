# What a reader gets: tables, figures, model cards of the user's own models, and all of it on one page.
from dfshield.planning.paths import FIGURE
from dfshield.report.content import figure_content, figure_files


rule table:
    input:
        current("table", TABLE),
        lambda wildcards: evidence(plan.cells(wildcards.table)),
        lambda wildcards: timings(plan, wildcards.table),
    output:
        csv=report(TABLE, caption="../report/table.rst", category="Tables"),
        markdown=Path(TABLE).with_suffix(".md"),
        latex=Path(TABLE).with_suffix(".tex"),
        html=Path(TABLE).with_suffix(".html"),
    log:
        log_of(TABLE),
    benchmark:
        benchmark_of(TABLE)
    message:
        "Table {wildcards.table}"
    threads: 1
    resources:
        **ask("table"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("table"),
        config=CONFIG,
        content=lambda wildcards: table_content(plan, wildcards.table),
    shell:
        "{params.dfshield} table {wildcards.table} --config {params.config} --out {output.csv} 2>&1 | tee {log}"


rule figure:
    input:
        current("figure", FIGURE),
        lambda wildcards: usable(figure_files, plan, wildcards.figure),
    output:
        png=report(FIGURE, caption="../report/figure.rst", category="Figures"),
        svg=Path(FIGURE).with_suffix(".svg"),
        csv=Path(FIGURE).with_suffix(".csv"),
    log:
        log_of(FIGURE),
    benchmark:
        benchmark_of(FIGURE)
    message:
        "Figure {wildcards.figure}"
    threads: 1
    resources:
        **ask("figure"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("figure"),
        config=CONFIG,
        content=lambda wildcards: figure_content(plan, wildcards.figure),
        caption=lambda wildcards: plan.figure(wildcards.figure).caption,
    shell:
        "{params.dfshield} figure {wildcards.figure} --config {params.config} --out {output.png} 2>&1 | tee {log}"


rule cost:
    input:
        current("cost", COST),
        lambda wildcards: measurements(plan),
    output:
        csv=report(COST, caption="../report/cost.rst", category="Tables"),
        markdown=Path(COST).with_suffix(".md"),
        latex=Path(COST).with_suffix(".tex"),
        html=Path(COST).with_suffix(".html"),
    log:
        log_of(COST),
    message:
        "Cost of every method"
    threads: 1
    resources:
        **ask("cost"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("cost"),
        config=CONFIG,
    shell:
        "{params.dfshield} cost --config {params.config} --out {output.csv} 2>&1 | tee {log}"


rule checklist:
    input:
        current("checklist", CHECKLIST),
        records=checklist_records,
    output:
        csv=report(CHECKLIST, caption="../report/table.rst", category="Tables"),
        markdown=Path(CHECKLIST).with_suffix(".md"),
    log:
        log_of(CHECKLIST),
    message:
        "Robustness checks of every model"
    threads: 1
    resources:
        **ask("checklist"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("checklist"),
    shell:
        "{params.dfshield} checklist {input.records} --out {output.csv} 2>&1 | tee {log}"


rule harden_model:
    input:
        current("card", CARD),
        unpack(hardened_files),
    output:
        card=CARD,
        model=Path(CARD).with_name("model.safetensors"),
        report=Path(CARD).with_name("report.csv"),
        json=Path(CARD).with_name("report.json"),
    log:
        log_of(CARD),
    benchmark:
        benchmark_of(CARD)
    message:
        "Hardened model {wildcards.name}"
    threads: 1
    resources:
        **ask("card"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("card"),
        config=CONFIG,
        folder=lambda wildcards, output: Path(output.card).parent,
    shell:
        "{params.dfshield} card {wildcards.name} --config {params.config} --student {input.student}"
        " --out {params.folder} 2>&1 | tee {log}"


rule report_html:
    input:
        current("report", PAGE),
        expand(TABLE, table=plan.own_tables),
        expand(FIGURE, figure=plan.own_figures),
        expand(CARD, name=plan.config.harden),
    output:
        html=report(PAGE, category="Report"),
    log:
        log_of(PAGE),
    message:
        "Report of the run"
    threads: 1
    resources:
        **ask("report"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("report"),
        config=CONFIG,
        content=lambda wildcards: page_content(plan),
    shell:
        "{params.dfshield} report --config {params.config} --out {output.html} 2>&1 | tee {log}"
