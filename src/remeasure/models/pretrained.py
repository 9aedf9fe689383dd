"""Published weights: located, fingerprinted, and loaded into a net without executing code from the file."""

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from remeasure.spec.base import DataMissingError, InputError
from remeasure.spec.config import Config
from remeasure.spec.recipe import Evaluation
from remeasure.spec.run import RunSpec
from remeasure.system import paths
from remeasure.system.atomic import read_bytes
from remeasure.system.redaction import masked
from remeasure.system.validation import did_you_mean

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB_FILE = "model.safetensors"  # in each of timm's repositories on the hub
HUB_TIMEOUT_SECONDS = 10.0
FAULTS_SHOWN = 8

# No telemetry. The hub's client, which timm imports, reads this variable when it is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def fingerprint(config: Config, *, fetch: bool = True) -> str | None:
    """SHA-256 of the weights file of an evaluation; None for a config that trains.

    Raises InputError, or DataMissingError if published weights are missing and cannot be downloaded; `fetch=False`
    downloads nothing.
    """
    path = locate(config, fetch=fetch)
    return None if path is None else _sha256(path)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def locate(config: Config | RunSpec, *, fetch: bool = True) -> Path | None:
    """The weights file: model.weights, else weights/<name> under the data root, else the hub's, maybe downloaded."""
    if not isinstance(config.recipe, Evaluation):
        return None
    if config.model.weights is not None:
        path = Path(os.path.expanduser(config.model.weights))  # noqa: PTH111 - Path's raises for an unknown user
        if not os.path.isfile(path):  # noqa: PTH113 - Path's raises for a name that the operating system refuses
            raise InputError(f"model.weights: there is no file {path}")
        return path
    name = config.recipe.weights
    lying = next(filter(os.path.isfile, _places(name)), None)
    return lying or _from_hub(name, config=config, fetch=fetch)


def _places(name: str) -> list[Path]:
    return [paths.data_root() / "weights" / f"{name}{suffix}" for suffix in SUFFIXES]


def _from_hub(name: str, *, config: Config | RunSpec, fetch: bool) -> Path:
    """The hub's file of these weights: from the hub's cache, else downloaded into it with a progress bar."""
    import timm  # 5 s to import
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    known = timm.list_pretrained()
    repository = timm.get_pretrained_cfg(name).hf_hub_id if name in known else None
    if repository is None:
        raise InputError(f"recipe.weights: timm knows no weights {name!r} on its hub{did_you_mean(name, known)}")
    cached = try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    reason = _unreachable() if fetch else "it is not downloaded while the photographs are missing"
    if not reason:
        try:
            return Path(hf_hub_download(repository, HUB_FILE))
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = masked(str(error)).splitlines()[0]
    names = f"model={config.model.name} data={config.data.name} recipe={config.recipe.name}"
    raise DataMissingError(
        f"weights: {name} is missing; have one of these, and start again:",
        f"  {HUB_FILE} of {repository} in the hub's cache, by `hf download {repository} {HUB_FILE}`",
        f"  {_places(name)[0]} (or a torch file, .pth, there)",
        f"  a file of them anywhere: {paths.command('train')} {names} model.weights=PATH",
        f"  {reason}",
    )


def _unreachable() -> str:
    """Why the hub cannot be reached; "" if it can. The hub's own client takes half a minute to find out."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, so nothing is downloaded"
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:  # an HTTP error is an answer, too
        return ""
    except (OSError, http.client.HTTPException) as error:
        return masked(f"{constants.ENDPOINT} cannot be reached ({error})")
    return ""


def load(network: nn.Module, path: Path, *, sha256: str | None = None) -> None:
    """Put the weights of a .safetensors or torch file into the network.

    Torch files are read with weights_only=True, so that nothing in them is executed; like timm, this takes the weights
    under `model`, `state_dict` or their moving averages. The file must have exactly the net's weights, in their shapes
    and finite. Raises InputError with a line for each fault, or if the file's SHA-256 is not `sha256`.
    """
    if sha256 is not None and _sha256(path) != sha256:
        raise InputError(f"{path}: it has changed since the run was planned; start again")
    _fill(network, _read(path), path=path)


def load_safetensors(network: nn.Module, path: Path, *, sha256: str) -> None:
    """`load` for a file that this package has written; it does not import timm, which takes seconds."""
    from safetensors.torch import load

    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{path}: damaged, it is not what was written when the run finished")
    _fill(network, load(content), path=path)


def _fill(network: nn.Module, weights: Mapping[str, Any], *, path: Path) -> None:
    faults = list(_misfits(weights, own=network.state_dict()))
    if faults:
        more = [f"  and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
        raise InputError(f"{path}: not weights of this net:", *(f"  {fault}" for fault in faults[:FAULTS_SHOWN]), *more)
    network.load_state_dict(weights)


def _read(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from timm.models import load_state_dict

    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles that torch did not write; those are refused
            weights: object = load_state_dict(str(path), weights_only=True)
    except (SafetensorError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a whole file of weights ({error})") from None
    except Exception as error:  # a damaged pickle can raise any type
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{path}: not a file of weights, or more than that: nothing in it was run ({reason})"
        ) from None
    if not isinstance(weights, Mapping):
        raise InputError(f"{path}: expected weights by name, got a {type(weights).__name__}")
    return weights


def _misfits(weights: Mapping[str, Any], *, own: Mapping[str, Tensor]) -> Iterator[str]:
    """One line for each weight that is missing, unknown, of another shape, or not finite."""
    for name in [name for name in own if name not in weights]:
        yield f"{name}: missing"
    for name, value in weights.items():
        if name not in own:
            yield f"{name}: the net has no such weight"
        elif not isinstance(value, Tensor) or value.shape != own[name].shape:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            yield f"{name}: expected shape {list(own[name].shape)}, got {found}"
        elif not torch.isfinite(value).all():
            yield f"{name}: holds values that are not finite"
