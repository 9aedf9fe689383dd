"""What experiments share: folders, training, and notes of the data and specs that they used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remeasure.config import compose
from remeasure.config.resolve import identified
from remeasure.data import catalog, fingerprint
from remeasure.data.files import Split
from remeasure.data.fingerprint import Source
from remeasure.runs.folder import Outcome, Place
from remeasure.spec.run import DataSpec, RunSpec
from remeasure.system import paths

Train = Callable[[Sequence[tuple[RunSpec, int]]], list[Outcome]]  # from (spec, seed) to outcomes, in the same order
Numbers = dict[str, float | None]  # of one seed; None: not finite


@dataclass(kw_only=True)
class Lab:
    """`train`: trains all (spec, seed) pairs, reusing finished runs. `data_sha256`, `specs`, `pictures`: those used."""

    place: Place
    results: Path
    train: Train
    data_sha256: dict[str, str] = field(default_factory=dict)
    specs: dict[str, str] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    _splits: dict[str, Split] = field(default_factory=dict)

    def spec(self, overrides: Sequence[str]) -> RunSpec:
        """The spec that `python src/train.py <overrides>` trains. Raises InputError, or DataMissingError."""
        return identified(
            compose.compose(list(overrides)),
            data_root=self.place.data_root,
            device_kind=self.place.device_kind,
            fingerprint=self._fingerprint,
        )

    def _fingerprint(self, spec: DataSpec, *, root: Path, trains: bool) -> Source:  # noqa: ARG002
        """Computed once for each data set; when tuning, over the training split alone."""
        name = spec.name if spec.split == "test" else f"{spec.name}, training split"
        if name not in self.data_sha256:
            self.data_sha256[name] = fingerprint.fingerprint(spec, root=root).data_sha256
        return fingerprint.official(spec, self.data_sha256[name], verified=False)

    def train_split(self, spec: DataSpec) -> Split:
        """The whole official training split, read once."""
        if spec.name not in self._splits:
            self._splits[spec.name] = catalog.load_split(spec, "train", root=self.place.data_root)
        return self._splits[spec.name]

    def data_spec(self, name: str) -> DataSpec:
        """The spec in conf/data/<name>.yaml; notes its fingerprint."""
        spec = catalog.read_config(name, conf_dirs=paths.conf_dirs())
        self._fingerprint(spec, root=self.place.data_root, trains=True)
        return spec
