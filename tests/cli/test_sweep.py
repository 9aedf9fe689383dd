"""A sweep tells what each job has swept, and ends with a table; tuning fits its split to the data."""

import sqlite3
import statistics
from contextlib import closing
from pathlib import Path

from tests.support.project import Project

from remeasure.cli.sweep import Job, table
from remeasure.config.compose import compose


def test_a_line_for_each_combination_with_mean_and_sd_over_its_seeds() -> None:
    scores = {("1e-3", 0): 90.0, ("1e-3", 1): 92.0, ("1e-2", 0): 80.5, ("1e-2", 1): None}
    jobs = [
        Job(overrides=("model=mlp2", f"recipe.optimizer.lr_peak={rate}", f"seed={seed}"), accuracy_percent=score)
        for (rate, seed), score in scores.items()
    ]
    head, first, second = (line.split("  ") for line in table(jobs))
    assert [cell.strip() for cell in head if cell] == ["recipe.optimizer.lr_peak", "seeds", "mean %", "sd"]
    assert [cell.strip() for cell in first if cell] == ["1e-3", "2", "91.000", f"{statistics.stdev([90, 92]):.3f}"]
    assert [cell.strip() for cell in second if cell] == ["1e-2", "1 of 2", "80.500"]


def test_tuning_holds_10000_images_back_or_a_fifth_where_that_is_fewer() -> None:
    tuned = [compose([f"data={data}", "experiment=tuning"]).data for data in ("mnist", "cifar10", "digits")]
    assert [data.num_validation for data in tuned] == [10_000, 10_000, 1297 // 5]
    assert {data.split for data in tuned} == {"validation"}


def test_a_sweep_on_the_digits_tells_the_rates_and_ends_with_the_table(project: Project, tmp_path: Path) -> None:
    swept = ("recipe.optimizer.lr_peak=1e-4,1e-3", "seed=1000,1001")
    short = ("experiment=tuning", "data=digits", "model=logreg", "recipe=article", "recipe.epochs_total=1")
    done = project.run("train.py", "-m", *short, *swept, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    told = [line for line in lines if line.startswith("job ")]
    assert [line.split()[-2:] for line in told] == [
        [f"recipe.optimizer.lr_peak={rate}", f"seed={seed}"] for rate in ("0.0001", "0.001") for seed in (1000, 1001)
    ]
    assert len([line for line in lines if line.startswith("validation_accuracy_percent=")]) == 4
    assert lines[-3].split() == ["recipe.optimizer.lr_peak", "seeds", "mean", "%", "sd"]
    assert [line.split()[:2] for line in lines[-2:]] == [["0.0001", "2"], ["0.001", "2"]]
    with closing(sqlite3.connect(project.root / "mlflow.db")) as store:
        ((parent, status, name),) = store.execute(
            "SELECT runs.run_uuid, status, name FROM runs JOIN tags USING (run_uuid) WHERE key = 'remeasure.sweep' "
            "ORDER BY start_time DESC LIMIT 1"  # other tests sweep in this project, too
        )
        assert (status, name[:8]) == ("FINISHED", "sweep 20")
        jobs = store.execute("SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId' AND value = ?", [parent])
        assert jobs.fetchone() == (4,)
        note = store.execute("SELECT value FROM tags WHERE key = 'mlflow.note.content' AND run_uuid = ?", [parent])
        assert note.fetchone()[0].splitlines()[1:-1] == [line.rstrip() for line in lines[-3:]]
