"""AIT (Choi et al. 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dfshield.baselines.method import Method, answer_and_distance
from dfshield.models.generators import GdfqGenerator, Generator, LabelEmbedding
from dfshield.options.baselines import Ait as AitOptions
from dfshield.training.losses import trades_loss


class Ait(Method):
    """AIT (Choi et al. 2022) on GDFQ's generator, the student trained by TRADES in place of its own loss.

    Gradient inundation, AIT's device for weights that are quantised, has no meaning for this student and is left out.
    """

    options: AitOptions

    def build(self) -> Generator:
        latent, mean, std = self.options.latent, self.teacher.mean.flatten(), self.teacher.std.flatten()
        embedding = LabelEmbedding(latent, self.classes)
        return GdfqGenerator(latent, self.shape, mean.tolist(), std.tolist(), embedding, self.options.generator_width)

    def generator_loss(self, raw: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        logits, distance = answer_and_distance(self.teacher, self.generator.to_image(raw))
        return F.cross_entropy(logits, labels) + self.options.feature_weight * distance

    def student_loss(self, images: Tensor, adversarial: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return trades_loss(self.student(images), self.student(adversarial), labels, self.options.beta)
