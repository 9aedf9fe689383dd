"""ViT-B/16 (Dosovitskiy et al. 2021, "An image is worth 16x16 words", Table 1), and any other net of timm.

At 224 pixels and 1,000 classes it has 86,567,656 parameters, which articles print as 86M. DeiT-B (Touvron et al. 2021,
"Training data-efficient image transformers", Table 1) is the same net, trained differently.
"""

import torch
from torch import Generator, nn

from remeasure.spec.base import InputError
from remeasure.system.validation import did_you_mean


def timm_net(
    *, image_shape: tuple[int, int, int], num_classes: int, generator: Generator, architecture: str
) -> nn.Module:
    """timm's net of that name with random weights, drawn as timm draws them, from the generator's seed."""
    import timm  # 5 s to import

    name, _, tag = architecture.partition(".")
    if tag or not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise InputError(f"model.options.architecture: timm has no net {architecture!r}{near}")
    config = timm.get_pretrained_cfg(name)
    # A net with position embeddings is built for one image size.
    size = {"img_size": image_shape[1:]} if config is not None and config.fixed_input_size else {}
    with torch.random.fork_rng(devices=[]):  # timm draws from global state
        torch.manual_seed(generator.initial_seed())
        try:
            network: nn.Module = timm.create_model(name, num_classes=num_classes, in_chans=image_shape[0], **size)
        except (AssertionError, RuntimeError) as error:
            raise InputError(f"model: {architecture} cannot take images {image_shape} ({error})") from None
    return network
