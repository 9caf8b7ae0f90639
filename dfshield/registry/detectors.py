"""Detectors of attacked images."""

from dfshield.registry.entry import Entry

DETECTORS = {
    "classifier": Entry(
        "dfshield.defences.detectors:fit_secondary",
        "Secondary classifier",
        about="a network on the logits, trained on clean and attacked images (Nayak et al. 2022)",
        options="dfshield.options.detectors:SecondaryDetector",
    ),
    "mahalanobis": Entry(
        "dfshield.defences.detectors:fit_mahalanobis",
        "Mahalanobis",
        about="distance of the penultimate features from the nearest class (Lee et al. 2018)",
        options="dfshield.options.detectors:MahalanobisDetector",
    ),
    "lid": Entry(
        "dfshield.defences.lid:fit_lid",
        "LID",
        about="local intrinsic dimensionality of logits and penultimate features (Ma et al. 2018)",
        options="dfshield.options.detectors:LidDetector",
    ),
    "squeezing": Entry(
        "dfshield.defences.feature_squeezing:fit_squeezing",
        "Feature squeezing",
        about="distance between predictions on squeezed and plain images (Xu et al. 2018)",
        options="dfshield.options.detectors:SqueezingDetector",
    ),
}
"""Functions ``(model, x, y, options, random) -> nn.Module`` that fit a score of images on a training set."""
