"""Figures of a net on the validation split. Legend: N image, H height, W width, C channel, K class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pillsnap.core.bundle import RETIRED_LOGIT
from pillsnap.training import distributed
from pillsnap.training.backbone import PillNet
from pillsnap.training.batches import TrainingData, plain_batches
from pillsnap.training.device import Device


def answers(net: PillNet, data: TrainingData, device: Device, batch_size: int) -> Tensor:
    """``logits_NK`` of the whole validation split, on the CPU; each process answers to its share of the images."""
    net.eval()
    here = distributed.ranks()
    rows = data.val_indices[here.rank :: here.world]
    logits = [torch.empty((0, len(data.manifest.catalog.drugs)))]
    with torch.inference_mode(), device.forward_pass():
        for image_NHWC_u8, _ in plain_batches(data, rows, batch_size):
            image = net.normalize(image_NHWC_u8.to(device.torch_device))
            logits.append(net.backbone(image.contiguous(memory_format=torch.channels_last)).float().cpu())
    return distributed.answers_of_all(torch.cat(logits))


def score(logits_NK: Tensor, data: TrainingData) -> dict[str, float]:
    """Loss, top-1 and top-5 on the whole validation split, and top-1 of each domain."""
    logits_NK[:, list(data.manifest.catalog.retired_indices)] = RETIRED_LOGIT  # as in the bundle
    label_N = torch.from_numpy(data.labels_N[data.val_indices])
    is_real_N = torch.from_numpy(data.is_real_N[data.val_indices])
    correct_N = logits_NK.argmax(1) == label_N
    top5 = logits_NK.topk(min(5, logits_NK.shape[1]), dim=1).indices
    metrics = {
        "val_loss": float(F.cross_entropy(logits_NK, label_N)),
        "val_top1": float(correct_N.float().mean()),
        "val_top5": float((top5 == label_N[:, None]).any(1).float().mean()),
    }
    for name, mask in (("val_real_top1", is_real_N), ("val_studio_top1", ~is_real_N)):
        if mask.any():
            metrics[name] = float(correct_N[mask].float().mean())
    return metrics
