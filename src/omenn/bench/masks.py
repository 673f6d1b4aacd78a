"""Masks of the subject as a model sees it, from boxes or from masks of the pictures on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omenn.data.folders import Box, within
from omenn.modalities.image.preprocessing import Preprocessing


def box_masks(boxes: Sequence[Sequence[Box]], size: tuple[int, int]) -> Tensor:
    """(B, H, W) bool: what lies in one of the boxes of each picture; ``size`` is (H, W).

    >>> box_masks([[Box("cat", 1, 0, 2, 1)]], (1, 3)).tolist()
    [[[False, True, False]]]
    """
    height, width = size
    masks = [within(some, (width, height)) for some in boxes]
    return torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), dtype=bool))


def seen_by(preprocessing: Preprocessing, mask: np.ndarray) -> Tensor:
    """(H, W) bool: a mask of the picture on disk, resized and cropped as the model's pictures are.

    >>> half = np.repeat([[True, False]], 4, axis=0).repeat(4, axis=1)
    >>> seen_by(Preprocessing(size=(4, 4), crop="squash"), half)[0].tolist()
    [True, True, False, False]
    """
    channels = preprocessing.channels
    plain = replace(
        preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels, interpolation="nearest"
    )
    picture = Image.fromarray(np.asarray(mask, dtype=np.uint8) * 255)
    return plain(picture)[0, 0] > 0.5
