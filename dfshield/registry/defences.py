"""Defences that act at test time."""

from dataclasses import dataclass

from dfshield.registry.entry import Entry, RealData


@dataclass(frozen=True)
class Defence(Entry):
    """A subclass of ``dfshield.defences.defence.Defence``, and which real data it has seen."""

    real_data: RealData = "none"
    fitted: bool = False
    """it has something to fit, which the stage ``defend`` does"""
    network: str = ""
    """for the cost model: ``module:function`` from ``(options, input_shape)`` to the operations of a forward pass of
    the network that the fit trains; empty where it trains none to speak of"""


DEFENCES = {
    "identity": Defence("dfshield.defences.defence:Identity", "No defence", about="the model itself"),
    "tte": Defence(
        "dfshield.defences.tte:TestTimeEnsemble",
        "TTE",
        about="mean logits over crops and mirror images (Pérez et al. 2021)",
        options="dfshield.options.defences:Tte",
    ),
    "bit-depth": Defence(
        "dfshield.defences.bit_depth:BitDepthReduction",
        "Bit depth",
        about="pixels rounded to fewer bits (Xu et al. 2018)",
        options="dfshield.options.defences_pixels:BitDepth",
    ),
    "median": Defence(
        "dfshield.defences.median:MedianFilter",
        "Median filter",
        about="the median of a small window around each pixel (Xu et al. 2018)",
        options="dfshield.options.defences_pixels:Median",
    ),
    "jpeg": Defence(
        "dfshield.defences.jpeg:JpegCompression",
        "JPEG",
        about="JPEG compression (Dziugaite et al. 2016, Guo et al. 2018)",
        options="dfshield.options.defences_pixels:Jpeg",
    ),
    "total-variation": Defence(
        "dfshield.defences.total_variation:TotalVariationMinimisation",
        "TV minimisation",
        about="half of the pixels dropped and the image of least total variation in their place (Guo et al. 2018)",
        options="dfshield.options.defences_pixels:TotalVariation",
    ),
    "resize-pad": Defence(
        "dfshield.defences.resize_pad:RandomResizing",
        "Resize and pad",
        about="a random size and random zero padding (Xie et al. 2018)",
        options="dfshield.options.defences_random:ResizePad",
    ),
    "crop-rescale": Defence(
        "dfshield.defences.crop_rescale:CropEnsemble",
        "Crop and rescale",
        about="mean logits over random crops at the size of the image (Guo et al. 2018)",
        options="dfshield.options.defences_random:CropRescale",
    ),
    "noise": Defence(
        "dfshield.defences.noise:GaussianNoise",
        "Noise",
        about="mean logits over Gaussian noise, as in randomised smoothing (Cohen et al. 2019)",
        options="dfshield.options.defences_random:Noise",
    ),
    "smoothing": Defence(
        "dfshield.defences.smoothing:RandomisedSmoothing",
        "Smoothing",
        about="the class that most noisy copies vote for, with certificates by `dfshield certify` (Cohen et al. 2019)",
        options="dfshield.options.defences_smoothing:Smoothing",
    ),
    "activation-pruning": Defence(
        "dfshield.defences.activation_pruning:StochasticPruning",
        "SAP",
        about="a random part of the activations pruned, small ones more often (Dhillon et al. 2018)",
        options="dfshield.options.defences_activations:ActivationPruning",
    ),
    "mean-sparse": Defence(
        "dfshield.defences.mean_sparse:MeanSparsification",
        "MeanSparse",
        about="small variations of a channel around its mean blocked (Amini et al. 2024)",
        options="dfshield.options.defences_activations:MeanSparse",
    ),
    "k-wta": Defence(
        "dfshield.defences.k_wta:KWinners",
        "k-WTA",
        about="only the largest activations of a layer kept (Xiao et al. 2020)",
        options="dfshield.options.defences_activations:KWta",
    ),
    "mixture": Defence(
        "dfshield.defences.mixture:Mixture",
        "MixedNUTS",
        about="the accurate teacher and the robust student mixed, the student's logits sharpened (Bai et al. 2024)",
        options="dfshield.options.defences_fitted:Mixture",
        fitted=True,
    ),
    "dad": Defence(
        "dfshield.defences.dad:DataFreeDefence",
        "DAD",
        about="a detector on logits, and low-pass filtering of what it flags (Nayak et al. 2022)",
        options="dfshield.options.defences_detection:Dad",
        fitted=True,
    ),
    "diffpure": Defence(
        "dfshield.defences.diffpure:DiffusionPurification",
        "DiffPure",
        about="images noised, and denoised by a diffusion model (Nie et al. 2022)",
        options="dfshield.options.defences_diffusion:DiffPure",
        fitted=True,
        network="dfshield.defences.purification:denoiser_flops",
    ),
    "distribution-transfer": Defence(
        "dfshield.defences.distribution_transfer:Transfer",
        "Distribution transfer",
        about="the same at more noise, the way back guided by the image and the classifier's output",
        options="dfshield.options.defences_diffusion:DistributionTransfer",
        fitted=True,
        network="dfshield.defences.purification:denoiser_flops",
    ),
    "adversarial-transformation": Defence(
        "dfshield.defences.adversarial_transformation:AdversarialTransformation",
        "Adversarial transformation",
        about="images moved towards the least likely class of another network, before a network tuned on such",
        options="dfshield.options.defences_transformation:AdversarialTransformation",
        fitted=True,
        network="dfshield.defences.adversarial_transformation:external_flops",
    ),
    "quilting": Defence(
        "dfshield.defences.quilting:ImageQuilting",
        "Quilting",
        about="the image rebuilt from near patches of other images (Guo et al. 2018)",
        options="dfshield.options.defences_fitted:Quilting",
        fitted=True,
    ),
    "thermometer": Defence(
        "dfshield.defences.thermometer:ThermometerEncoding",
        "Thermometer",
        about="pixels coded by the levels that they exceed (Buckman et al. 2018)",
        options="dfshield.options.defences_fitted:Thermometer",
        fitted=True,
    ),
    "mixup-inference": Defence(
        "dfshield.defences.mixup_inference:MixtureEnsemble",
        "Mixup inference",
        about="mean logits over mixtures with other images (Pang et al. 2020)",
        options="dfshield.options.defences_fitted:MixupInference",
        fitted=True,
    ),
}
