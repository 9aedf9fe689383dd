"""A trained network as two files, and back as a module from pixels to logits.

model.safetensors has the weights and buffers by the names of the plain module, parameters in float32 whatever the
precision of the training; nothing in it can be executed. model.json has what rebuilds the module (SavedModel). Of
published weights, which are not copied, there is only model.json, which names them.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from remeasure.models import pretrained, registry
from remeasure.spec import __version__
from remeasure.spec.base import InputError, Precision, Strict
from remeasure.spec.recipe import Normalisation
from remeasure.spec.run import ModelSpec, RunSpec
from remeasure.system.atomic import read_bytes, write_atomic
from remeasure.system.formats import decode_json
from remeasure.system.validation import convert

WEIGHTS_FILE, MODEL_FILE = "model.safetensors", "model.json"


@dataclass(frozen=True, kw_only=True)
class SavedModel(Strict):
    """The content of model.json.

    `input_shape`: (C, H, W). `classes`: a name for each logit. `normalisation`: of pixels in [0, 1], as in the scored
    forward pass. `precision`, `channels_last`: of that forward pass. `published`: the name of published weights on
    timm's hub; null: the weights are in model.safetensors. `weights_sha256`: of the file with the weights.
    `remeasure`: the version of this package that wrote it.
    """

    builder: str
    options: dict[str, Any]
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    normalisation: Normalisation
    precision: Precision
    channels_last: bool
    published: str | None
    weights_sha256: str
    spec_sha256: str
    seed: int
    remeasure: str


class Classifier(nn.Module):
    """A saved network in evaluation mode: images (N, C, H, W) uint8 in 0..255 → logits (N, num_classes) float32.

    It normalises the images itself, and computes in the precision in which the run was scored. Images and module must
    be on the same device. Raises ValueError for images of another type or shape; nothing is resized.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, *, saved: SavedModel) -> None:
        super().__init__()
        self.saved, self.classes, self.input_shape = saved, saved.classes, saved.input_shape
        self._bfloat16 = saved.precision == "bfloat16"
        self._format = torch.channels_last if saved.channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self._format).requires_grad_(False)
        mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in asdict(saved.normalisation).values())
        self.register_buffer("mean", 255 * mean)
        self.register_buffer("scale", 1 / (255 * std))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(
                f"expected images (N, {', '.join(map(str, self.input_shape))}) uint8, "
                f"got {tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            )
        batch = ((images.to(torch.float32) - self.mean) * self.scale).contiguous(memory_format=self._format)
        if not self._bfloat16:
            return self.network(batch)  # type: ignore[no-any-return]
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            logits: Tensor = self.network(batch)
        return logits.float()


def write(
    directory: Path,
    *,
    network: nn.Module,
    spec: RunSpec,
    seed: int,
    normalisation: Normalisation,
    classes: tuple[str, ...],
    published: str | None,
) -> None:
    """Write both files; of `published` weights, model.json alone. `network`: the one that was scored."""
    from safetensors.torch import save

    if published is None:
        state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        content = save(state)
        write_atomic(directory / WEIGHTS_FILE, content)
        weights_sha256 = hashlib.sha256(content).hexdigest()
    else:
        assert spec.weights_sha256 is not None
        weights_sha256 = spec.weights_sha256
    saved = SavedModel(
        builder=spec.model.builder,
        options=dict(spec.model.options),
        input_shape=spec.input_shape,
        classes=classes,
        normalisation=normalisation,
        precision=spec.precision,
        channels_last=spec.channels_last,
        published=published,
        weights_sha256=weights_sha256,
        spec_sha256=spec.spec_sha256,
        seed=seed,
        remeasure=__version__,
    )
    write_atomic(directory / MODEL_FILE, (json.dumps(asdict(saved), indent=1, ensure_ascii=False) + "\n").encode())


def read(directory: Path) -> SavedModel:
    """What model.json says. InputError: it is not there, or damaged."""
    path = directory / MODEL_FILE
    if not path.exists():
        raise InputError(f"{directory}: this run kept no model; train it again with keep=all fresh=true")
    return convert(SavedModel, decode_json(read_bytes(path), name=str(path)), where=str(path))


def load(directory: Path, *, published: Path | None = None) -> Classifier:
    """The network of a folder with both files, on the CPU. `published`: the file of published weights, if it is one.

    Raises InputError: a file is missing or damaged, or the builder makes another network than it did.
    """
    saved = read(directory)
    model = ModelSpec(name="saved", builder=saved.builder, options=saved.options)
    network = registry.build(model, image_shape=saved.input_shape, num_classes=len(saved.classes), generator_seed=0)
    if saved.published is None:
        pretrained.load_safetensors(network, directory / WEIGHTS_FILE, sha256=saved.weights_sha256)
    else:
        if published is None:
            raise InputError(f"{directory}: the weights are {saved.published}, of timm's hub; their file is not given")
        pretrained.load(network, published, sha256=saved.weights_sha256)
    return Classifier(network, saved=saved)


def export(classifier: Classifier) -> "torch.export.ExportedProgram":
    """The forward pass as a program of torch's own operators, for any number of images; it needs no code of ours."""
    images = torch.zeros(2, *classifier.input_shape, dtype=torch.uint8)  # one image would make a program for one
    with torch.no_grad():
        return torch.export.export(classifier, (images,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
