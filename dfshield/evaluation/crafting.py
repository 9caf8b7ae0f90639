"""What attacks work on in place of the model: the same function, computed faster. Verdicts never come from here."""

import torch
from torch import Tensor, nn

from dfshield.models.folding import fold
from dfshield.options import AttackOptions


class FastModels:
    """Stand-ins for a frozen model: `fp32` and `bf16`, the latter in the precision of the options.

    Both have BatchNorm folded away where that is exact; with `options.reference` both are the model itself.
    """

    def __init__(self, model: nn.Module, options: AttackOptions) -> None:
        self.fp32 = self.bf16 = model
        if not options.reference:
            self.fp32 = _Cast(fold(model), rounded=False)
            self.bf16 = _Cast(self.fp32.net, rounded=True) if options.precision == "bf16" else self.fp32


class _Cast(nn.Module):
    """Images (N,C,H,W) to float32 logits, through arithmetic in fp32 or bf16 and the layout that is fastest."""

    def __init__(self, net: nn.Module, rounded: bool) -> None:
        super().__init__()
        self.net, self.rounds = net, rounded

    def forward(self, x: Tensor) -> Tensor:
        # a traced graph chooses its own layout, and would only undo this one
        x = x if torch.jit.is_tracing() else x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.rounds):
            logits: Tensor = self.net(x)
        return logits.float()
