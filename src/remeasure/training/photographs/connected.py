"""The processes of a run on several devices, as Lightning asks for them."""

from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from remeasure.training.photographs.world import World


class Connected(LightningEnvironment):
    """The world, as Lightning asks for it. The processes are connected already, so that it needs no address."""

    creates_processes_externally = True

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def world_size(self) -> int:
        return self._world.size

    def global_rank(self) -> int:
        return self._world.rank

    def local_rank(self) -> int:
        return self._world.local_rank

    def node_rank(self) -> int:
        return self._world.rank // self._world.devices

    def teardown(self) -> None:
        """Nothing: Lightning's would unset WORLD_SIZE, by which a later run in this process finds torchrun's world."""
