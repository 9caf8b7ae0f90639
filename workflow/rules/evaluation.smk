# Fits of defences; then the first real images that are read: attacks, one ledger per model and protocol; certificates,
# detectors, loss landscapes; the diversity of training images, one record per set.


rule defend:
    input:
        current("defend", DEFENCE),
        model=attacked,
        teacher=own_teacher,
        data=fitting_data,
    output:
        DEFENCE,
    log:
        log_of(DEFENCE),
    benchmark:
        benchmark_of(DEFENCE)
    message:
        "Fit {wildcards.defence} to {wildcards.dataset}/{wildcards.model}/{wildcards.source}/{wildcards.recipe}"
        " seed {wildcards.seed}"
    wildcard_constraints:
        defence=fitted(),
    priority: 2
    threads: cores("defend")
    resources:
        **ask("defend"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("defend"),
        threat=lambda wildcards: usable(plan.fitted_for, Place.of(dict(wildcards.items()))),
        factory=factory_flags,
    shell:
        "{params.dfshield} defend --model {input.model} --teacher {input.teacher} --data {input.data} --out {output}"
        " --threat {params.threat} {params.factory} {params.flags} --code {params.code} 2>&1 | tee {log}"


rule attack:
    input:
        current("attack", LEDGER),
        other_models,
        fit,
        model=attacked,
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
        **ask("attack"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("attack"),
        images=images_flags,
        images_sha256=images_sha256,
        factory=factory_flags,
        defence=defence_flags,
        others=other_flags,
        subject=subject,
        state=STATE,
    shell:
        "{params.dfshield} attack --model {input.model} --out {output} {params.images} {params.data}"
        " --protocol {wildcards.protocol} --subject {params.subject:q} {params.defence} {params.others} {params.factory}"
        " --state {params.state} {params.flags} --code {params.code} 2>&1 | tee {log}"


rule certify:
    input:
        current("certify", CERTIFICATES),
        model=attacked,
    output:
        record=CERTIFICATES,
        curve=Path(CERTIFICATES).with_suffix(".csv"),
    log:
        log_of(CERTIFICATES),
    benchmark:
        benchmark_of(CERTIFICATES)
    message:
        "Certificates of {wildcards.dataset}/{wildcards.model}/{wildcards.source}/{wildcards.recipe}"
        " behind {wildcards.defence} seed {wildcards.seed}"
    wildcard_constraints:
        defence=smoothings(),
    threads: cores("certify")
    resources:
        **ask("certify"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("certify"),
        images=images_flags,
        images_sha256=images_sha256,
        factory=factory_flags,
    shell:
        "{params.dfshield} certify --model {input.model} --out {output.record} {params.images} {params.data}"
        " {params.factory} {params.flags} --code {params.code} 2>&1 | tee {log}"


rule detect:
    input:
        current("detect", DETECTION),
        model=attacked,
        data=fitting_data,
    output:
        DETECTION,
    log:
        log_of(DETECTION),
    benchmark:
        benchmark_of(DETECTION)
    message:
        "Detector {wildcards.defence} of {wildcards.dataset}/{wildcards.model}/{wildcards.source}/{wildcards.recipe}"
        " seed {wildcards.seed}"
    wildcard_constraints:
        defence=detectors(),
    threads: cores("detect")
    resources:
        **ask("detect"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("detect"),
        images=images_flags,
        images_sha256=images_sha256,
        factory=factory_flags,
    shell:
        "{params.dfshield} detect --model {input.model} --data {input.data} --out {output} {params.images}"
        " {params.data} {params.factory} {params.flags} --code {params.code} 2>&1 | tee {log}"


rule checks:
    input:
        current("checks", CHECKS),
        checks_inputs,
        model=attacked,
    output:
        CHECKS,
    log:
        log_of(CHECKS),
    benchmark:
        benchmark_of(CHECKS)
    message:
        "Robustness checks of {wildcards.dataset}/{wildcards.model}/{wildcards.source}/{wildcards.recipe}"
        " seed {wildcards.seed}"
    threads: cores("checks")
    resources:
        **ask("checks"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("checks"),
        images=images_flags,
        images_sha256=images_sha256,
        factory=factory_flags,
        defence=defence_flags,
        read=checks_flags,
        subject=subject,
    shell:
        "{params.dfshield} checks --model {input.model} --out {output} {params.images} {params.data}"
        " --subject {params.subject:q} {params.defence} {params.read} {params.factory} {params.flags}"
        " --code {params.code} 2>&1 | tee {log}"


rule landscape:
    input:
        current("landscape", LANDSCAPE),
        model=attacked,
    output:
        LANDSCAPE,
    log:
        log_of(LANDSCAPE),
    benchmark:
        benchmark_of(LANDSCAPE)
    message:
        "Loss landscape of {wildcards.dataset}/{wildcards.model}/{wildcards.source}/{wildcards.recipe}"
        " seed {wildcards.seed}"
    threads: cores("landscape")
    resources:
        **ask("landscape"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("landscape"),
        images=images_flags,
        images_sha256=images_sha256,
        factory=factory_flags,
    shell:
        "{params.dfshield} landscape --model {input.model} --out {output} {params.images}"
        " {params.data} {params.factory} {params.flags} --code {params.code} 2>&1 | tee {log}"


rule diversity:
    input:
        current("diversity", DIVERSITY),
        teacher=own_teacher,
        data=DATA,
    output:
        DIVERSITY,
    log:
        log_of(DIVERSITY),
    benchmark:
        benchmark_of(DIVERSITY)
    message:
        "Diversity of {wildcards.dataset}/{wildcards.model}/{wildcards.source} seed {wildcards.seed} against the {wildcards.split} split"
    wildcard_constraints:
        source=one_of(plan.sources),
        dataset=one_of(plan.config.datasets),
    threads: cores("diversity")
    resources:
        **ask("diversity"),
    conda:
        "../../envs/dfshield.yaml"
    params:
        **common("diversity"),
        vgg16=vgg16_flags,
        vgg16_sha256=vgg16_sha256,
    shell:
        "{params.dfshield} diversity --teacher {input.teacher} --data {input.data} --out {output}"
        " --dataset {wildcards.dataset} {params.data} {params.flags} {params.vgg16} --code {params.code} 2>&1 | tee {log}"


use rule diversity as diversity_of_images with:
    input:
        current("diversity", IMAGES_DIVERSITY),
        teacher=own_teacher,
        data=IMAGES,
    output:
        IMAGES_DIVERSITY,
    log:
        log_of(IMAGES_DIVERSITY),
    benchmark:
        benchmark_of(IMAGES_DIVERSITY)
    message:
        "Diversity of the images of {wildcards.dataset}/{wildcards.model}/{wildcards.recipe} seed {wildcards.seed}"
    wildcard_constraints:
        source=NONE,
        dataset=one_of(plan.config.datasets),
