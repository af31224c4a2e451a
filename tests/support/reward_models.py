"""Reward models to test and measure with: their heads are random, so their scores mean nothing."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tests.support import tiny_model

HEAD_STD = 0.02


def write(folder: Path, body: Path) -> Path:
    """Over the weights of a causal model, in their dtype."""
    model = AutoModelForSequenceClassification.from_pretrained(body, num_labels=1)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(model.score.weight, std=HEAD_STD, generator=generator)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(body).save_pretrained(folder)
    return folder


def write_tiny(folder: Path, **fields: Any) -> Path:
    """A random one of 30,000 weights, in float32, with 256 positions and a logit; `fields` of its
    config are changed."""
    config = AutoConfig.from_pretrained(tiny_model.write(folder))
    config.num_labels = 1
    for name, value in fields.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder
