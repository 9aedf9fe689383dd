"""The callbacks that a spec names: those that its engine would not call are refused, and so are those that change a
setting of the optimiser."""

import traceback
from collections.abc import Sequence

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging

from remeasure.spec.base import InputError, refuse
from remeasure.spec.plugin import Plugin, raised
from remeasure.training.engines.steps import StepCallback

NOT_IN_BLOCKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")


def built(plugins: Sequence[Plugin], *, in_blocks: bool) -> list[Callback]:
    """The callbacks that a spec names. `in_blocks`: a Lightning batch is a block of optimiser steps.

    Raises InputError: a class that is not there or does not take its options, or a hook that is never called.
    """
    made = [plugin.build(Callback, where="callback") for plugin in plugins]
    unused = [
        f"callback: {type(callback).__name__} has {hook}, which is never called in blocks of steps; choose another hook"
        for callback in made
        for hook in NOT_IN_BLOCKS
        if in_blocks and getattr(type(callback), hook) is not getattr(Callback, hook)
    ]
    unused += [
        f"callback: {type(callback).__name__} averages by Lightning's count of steps, which blocks of steps do not "
        "move; write recipe.averaging={from_epoch: 1, decay: 0.99}, or a StepCallback (docs/extend.md)"
        for callback in made
        if in_blocks and isinstance(callback, (WeightAveraging, StochasticWeightAveraging))
    ]
    unused += [
        f"callback: {type(callback).__name__} acts at optimiser steps within blocks, and photographs are trained on "
        "without blocks; give it on_train_batch_end in place of after_step"
        for callback in made
        if not in_blocks and isinstance(callback, StepCallback)
    ]
    refuse(unused)
    return made


def blamed(error: Exception, *, callbacks: Sequence[Callback]) -> InputError | None:
    """What to tell of an exception that one of these callbacks raised; None if none did, or as its state was restored,
    which may be another callback's.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "load_state_dict":
            return None
        for callback in callbacks:
            if frame.f_locals.get("self") is callback:
                return InputError(f"callback: {type(callback).__name__}: {raised(error)}")
    return None


Settings = list[dict[str, object]]


class Kept(Callback):
    """Keeps the optimisers' settings, such as rates and momenta, as they are before the user's callbacks are called."""

    def __init__(self) -> None:
        self.settings: Settings = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.settings = self.of(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Only the rates change from step to step, by the schedule."""
        for kept, now in zip(self.settings, self.of(trainer), strict=True):
            kept["lr"] = now["lr"]

    @staticmethod
    def of(trainer: Trainer) -> Settings:
        groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
        return [
            {key: float(value) if key == "lr" else value for key, value in group.items() if key != "params"}
            for group in groups
        ]


class SettingsStay(Callback):
    """Called after the user's callbacks: raises InputError if one of them has changed a setting of an optimiser.

    A rate that is changed has no effect, and the record would not say what another one was.
    """

    def __init__(self, kept: Kept, *, plugins: Sequence[Plugin]) -> None:
        self._kept, self._names = kept, ", ".join(plugin.builder for plugin in plugins)

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        self._refuse_changed(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._refuse_changed(trainer)

    def _refuse_changed(self, trainer: Trainer) -> None:
        before, now = self._kept.settings, Kept.of(trainer)
        pairs = zip(before, now, strict=False)
        changed = dict.fromkeys(key for old, new in pairs for key in old | new if old.get(key) != new.get(key))
        if "lr" in changed or trainer.lr_scheduler_configs:
            raise InputError(
                f"callback: {self._names} changes the learning rate, which recipe.schedule sets anew at each step; "
                "write it as recipe.schedule"
            )
        if changed or len(before) != len(now):
            what = ", ".join(changed) or "parameter groups"
            raise InputError(
                f"callback: {self._names} changes the optimiser's {what}; the record would state that of "
                "recipe.optimizer: write it there"
            )
