"""Operators that select: a matrix of zeros and ones, found by value."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from opcases.case import Case, draw, table
from oracle import selected

X = draw(2, 3, 4)
Y = draw(2, 3, 4, seed=1)
CONST = draw(2, 3, 4, seed=2)
ROW = draw(4, seed=3)
LINE, IMAGE, VOLUME = draw(2, 2, 5), draw(2, 2, 4, 4), draw(1, 2, 3, 3, 3)

CASES: list[Case] = [
    *table("max_pool", {
        "2d": nn.MaxPool2d(2), "2d padding": nn.MaxPool2d(3, 2, 1),
        "2d indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        "2d keyword": lambda x: F.max_pool2d(input=x, kernel_size=2, stride=1),
        "2d torch": lambda x: torch.max_pool2d(x, 2), "adaptive 2d": nn.AdaptiveMaxPool2d(2),
        "global": lambda x: F.adaptive_max_pool2d(x, 1),
        "adaptive indices": lambda x: F.adaptive_max_pool2d(x, (2, 1), return_indices=True)[0],
        "dilated": nn.MaxPool2d(2, dilation=2), "ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    }, IMAGE, oracle=selected),
    *table("max_pool", {"1d": nn.MaxPool1d(2), "adaptive 1d": nn.AdaptiveMaxPool1d(2),
                        "1d indices": lambda x: F.max_pool1d(x, 3, return_indices=True)[0]},
           LINE, oracle=selected),
    *table("max_pool", {"3d": nn.MaxPool3d(2), "adaptive 3d": nn.AdaptiveMaxPool3d(1)}, VOLUME,
           oracle=selected),
    *table("clamp", {
        "both": lambda x: x.clamp(-0.5, 1), "minimum": lambda x: torch.clamp(x, min=0.1),
        "maximum": lambda x: x.clamp_max(0.7), "clip": lambda x: torch.clip(x, -1, 1),
        "clamp_min": lambda x: x.clamp_min(-0.2), "in place": lambda x: x.clamp_(-1, 0.5),
        "clip in place": lambda x: x.clip_(max=0.5),
        "keyword": lambda x: torch.clamp(input=x, min=0.0),
        "tensors": lambda x: x.clamp(min=-CONST.abs(), max=ROW.abs()),
        "relu6": F.relu6, "relu6 keyword": lambda x: F.relu6(input=x), "relu6 module": nn.ReLU6(),
        "relu6 in place": nn.ReLU6(inplace=True), "relu6 argument": lambda x: F.relu6(x, True),
        "hardtanh": F.hardtanh, "hardtanh module": nn.Hardtanh(-0.7, 1.2),
        "hardtanh in place": nn.Hardtanh(-0.5, 0.5, inplace=True), "hardtanh_": F.hardtanh_,
        "hardtanh argument": lambda x: F.hardtanh(x, -0.3, 0.4, True),
        "threshold": nn.Threshold(0.1, -5.0),
        "threshold function": lambda x: F.threshold(x, 0.5, 3.0),
        "threshold in place": nn.Threshold(0.1, 2.0, inplace=True),
        "threshold argument": lambda x: F.threshold(x, 0.1, 9.0, True),
        "hardshrink": nn.Hardshrink(0.4), "nan_to_num": torch.nan_to_num,
        "nan_to_num in place": lambda x: x.nan_to_num_(),
    }, X, oracle=selected),
    *table("maximum", {
        "two": torch.maximum, "minimum": lambda x, y: x.minimum(y), "fmax": torch.fmax,
        "fmin": torch.fmin,
    }, X, Y, oracle=selected),
    *table("maximum", {"constant": lambda x: torch.maximum(x, CONST),
                       "constant first": lambda x: torch.minimum(CONST, x),
                       "row": lambda x: torch.maximum(ROW, x),
                       "keyword": lambda x: torch.maximum(input=x, other=CONST)}, X,
                       oracle=selected),
    *table("max", {
        "dim": lambda x: x.max(1)[0], "values": lambda x: torch.max(x, dim=-1).values,
        "keepdim": lambda x: x.max(2, True)[0], "min": lambda x: x.min(dim=1, keepdim=True).values,
        "constant": lambda x: torch.max(x, CONST), "constant first": lambda x: CONST.min(x),
    }, X, oracle=selected),
    *table("max", {"two": torch.max, "two min": lambda x, y: x.min(y),
                   "other": lambda x, y: x.max(other=y)}, X, Y, oracle=selected),
    *table("max", {"all": lambda x: x.max(),
                   "all min": torch.min}, X, oracle=selected, samples=False),
    *table("amax", {"method": lambda x: x.amax(1), "dims": lambda x: x.amax((1, 2)),
                    "function": lambda x: torch.amax(x, 2, keepdim=True),
                    "amin": lambda x: x.amin(-1),
                    "aminmax": lambda x: torch.aminmax(x, dim=1).max}, X, oracle=selected),
    *table("amax", {"all": lambda x: x.amax()}, X, oracle=selected, samples=False),
    *table("median", {"dim": lambda x: x.median(1).values,
                      "last": lambda x: torch.median(x, -1, True)[0]},
           X, oracle=selected),
    *table("median", {"all": lambda x: x[:, :, :1].median()}, X, oracle=selected, samples=False),
    *table("nanmedian", {"dim": lambda x: x.nanmedian(dim=1)[0]}, X, oracle=selected),
    *table("kthvalue", {"last": lambda x: x.kthvalue(2)[0],
                        "dim": lambda x: torch.kthvalue(x, 2, 1).values,
                        "keyword": lambda x: x.kthvalue(k=1, dim=1, keepdim=True)[0]}, X,
                        oracle=selected),
    *table("topk", {"last": lambda x: x.topk(2)[0], "dim": lambda x: torch.topk(x, 2, dim=1).values,
                    "smallest": lambda x: x.topk(k=2, dim=-1, largest=False)[0]}, X,
                    oracle=selected),
    *table("sort", {"last": lambda x: x.sort()[0], "dim": lambda x: x.sort(1)[0],
                    "descending": lambda x: torch.sort(x, 1, True).values,
                    "keyword": lambda x: torch.sort(x, dim=1, stable=True)[0]}, X, oracle=selected),
    *table("sort", {"first": lambda x: x.sort(0)[0]}, draw(4, 2), oracle=selected, samples=False),
    *table("cummax", {"method": lambda x: x.cummax(1)[0]}, X, oracle=selected),
    *table("cummin", {"function": lambda x: torch.cummin(x, 2).values}, X, oracle=selected),
]  # fmt: skip
