"""Records of certificates, detectors and landscapes with chosen figures, for tests of what is made from them."""

from dfshield.evaluation.certificates import CertificateRecord
from dfshield.evaluation.detections import DetectionRecord, Outcome
from dfshield.evaluation.landscapes import LandscapeRecord

MADE = {"seed": 0, "data_sha256": "d", "package_version": "1", "code": "c", "dataset": "digits", "model": "cnn-s"}


def certificates(radii, right=True, **changes):
    n = len(radii)
    labels = changes.pop("labels", tuple(i % 4 for i in range(n)))
    own = {
        **{
            "norm": "l2",
            "classes": 10,
            "n": n,
            "abstained": 0.0,
            "curve": ({"radius": 0.5, "certified_accuracy": 0.25},),
        },
        **{"labels": labels, "predictions": labels if right else (9,) * n, "radii": tuple(radii)},
        **{"options": {"distribution": "gaussian", "sigma": 0.25, "n0": 10, "n": 90, "alpha": 0.01, "split": "test"}},
        **{"model_sha256": "m", "real_data": "teacher"},
    }
    return CertificateRecord(**(own | MADE | changes))


def detection(threat="linf:2/16", **changes):
    own = {
        **{"n": 50, "right": 40, "false_alarms": 0.28, "false_alarms_wanted": 0.05, "threshold": 0.123},
        **{"static": Outcome(0.5, 0.9, 0.8, 0.05), "adaptive": Outcome(1.0, 0.1, 0.4, 0.9)},
        **{"options": {"detector": "lid", "threat": threat, "steps": 9, "restarts": 3, "split": "test"}},
        **{"model_sha256": "m", "training_sha256": "t", "real_data": "teacher"},
    }
    return DetectionRecord(**(own | MADE | changes))


def landscape(rises=(0.5, 0.25), threat="linf:2/16", **changes):
    """A paraboloid over 3x3 points, as high as the rises' mean at a distance of 1."""
    along = (-1.0, 0.0, 1.0)
    height = sum(rises) / len(rises)
    own = {
        **{"n": 40, "accuracy": 0.75, "predicted": 4, "coordinates": along, "centre": 1.0, "rises": tuple(rises)},
        **{"surface": tuple(tuple(1.0 + height * (a * a + b * b) for b in along) for a in along)},
        **{"model_sha256": "m", "real_data": "none"},
        **{"options": {"loss": "adversarial", "threat": threat, "steps": 10, "radius": 0.5, "split": "test"}},
    }
    own["options"] |= {"pairs": len(rises), "angles": 8}
    return LandscapeRecord(**(own | MADE | changes))
