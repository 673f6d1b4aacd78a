"""From masks of pictures on disk to masks as the model sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from omenn.modalities.image.pictures import Pictures
from omenn.modalities.image.preprocessing import Preprocessing


@pytest.mark.parametrize("crop", ["center", "squash", "border"])
def test_masks_move_as_their_pictures_do(crop: str) -> None:
    preprocessing = Preprocessing(
        size=(24, 24), resize=(28, 28), crop=crop, interpolation="bicubic", mean=(0.5,), std=(0.5,)
    )
    mask = np.zeros((40, 60), dtype=bool)
    mask[8:30, 14:33] = True
    seen = Pictures(preprocessing).mask(mask)
    as_picture = preprocessing(Image.fromarray(mask.astype(np.uint8) * 255))[0, 0]
    assert seen.dtype == torch.bool
    assert seen.shape == (24, 24)
    certain = as_picture.abs() > 0.9  # not at the blurred outline
    assert certain.float().mean() > 0.7
    if crop == "border":  # the picture is grey beyond its border, the mask is empty
        assert not seen[as_picture.abs() < 0.02].any()
    assert (seen == (as_picture > 0))[certain].all()
    assert seen.any()
