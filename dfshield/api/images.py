"""Real images as a caller has them: tensors as PyTorch lays them out, or arrays as image files do."""

from typing import Any

import numpy as np
import torch


def as_arrays(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images (N,H,W,C) or (N,H,W) and labels (N,). A tensor `x` is (N,C,H,W), anything else has its channels last."""
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).contiguous().numpy()
    labels = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    return np.asarray(x), labels
