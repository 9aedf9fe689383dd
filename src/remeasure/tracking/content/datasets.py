"""The splits of a run's data set, as MLflow's inputs."""

import json
from collections.abc import Mapping
from typing import Any

from remeasure.data import cifar10, mnist
from remeasure.tracking.content.base import DataInput

MAX_DIGEST = 36  # characters of a data set's digest in MLflow; the whole fingerprint is in the tag data_sha256
_CIFAR10 = cifar10.MIRRORS[0] + cifar10.PICKLES_ARCHIVE
_IMAGENET = "https://image-net.org/download.php"
# Of the images, by source and official split.
_ADDRESSES = {
    "mnist": {split: f"{mnist.MIRRORS[0]}{stems[0]}.gz" for split, stems in mnist.STEMS.items()},
    "cifar10": {"train": _CIFAR10, "test": _CIFAR10},
    "imagenet": {"train": _IMAGENET, "test": _IMAGENET},
}


def inputs(config: Mapping[str, Any], *, sha256: str | None) -> tuple[DataInput, ...]:
    """The splits that a run of this resolved config reads. `sha256`: of the data set; () if it is not known."""
    data = config.get("data")
    if not data or not sha256:
        return ()
    num_validation, num_train = data.get("num_validation", 0), data.get("num_train", 0)
    sizes = {"train": num_train - num_validation} if config.get("recipe", {}).get("epochs_total") else {}
    if sizes and num_validation:
        sizes["validation"] = num_validation
    sizes[data["split"]] = num_validation if data["split"] == "validation" else data.get("num_test", 0)
    return tuple(_input(data, split=split, size=size, sha256=sha256) for split, size in sizes.items())


def _input(data: Mapping[str, Any], *, split: str, size: int, sha256: str) -> DataInput:
    official = "test" if split == "test" else "train"
    address = _ADDRESSES.get(data.get("source", ""), {}).get(official)
    title = {"title": data.get("title", data["name"]), "known_copy": data.get("known_copies", {}).get(sha256, "")}
    shape = data.get("image_shape", ())
    schema = {"features": _tensor("uint8", [-1, *shape]), "targets": _tensor("int64", [-1])}
    return DataInput(
        name=f"{data['name']}-{split}",
        context=split,
        digest=sha256[:MAX_DIGEST],
        source_type="http" if address else "code",  # types whose source mlflow.data.get_source can open
        source=json.dumps({"url": address} if address else {"tags": {"mlflow.source.name": str(data.get("source"))}}),
        schema=json.dumps({"mlflow_tensorspec": schema}),
        profile=json.dumps({"num_images": size, "num_classes": data.get("num_classes"), **title}),
    )


def _tensor(dtype: str, shape: list[int]) -> str:
    """A schema of MLflow's, of one tensor."""
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}])
