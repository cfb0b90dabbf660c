import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import write_deltalake
from mlflow import MlflowClient

from deployments.errors import BadInputError, ContenderError
from tasks import score
from tasks.champion import CHAMPION, load_version, standing_champion
from tasks.frame import model_inputs
from tasks.register import register_version
from tasks.score import input_contract, rejected_path, require_champion, score_file, score_snapshot
from tasks.tracking import Tracking

ROOT = Path(__file__).resolve().parents[2]
ENTITY_AND_FEATURES = ["id", "radius", "texture", "visits", "ward", "insured"]


@dataclass(frozen=True)
class Serving:
    """A champion, its data, and where scores go."""

    line: Any
    folder: Path

    @property
    def platform(self):
        return self.line.platform

    @property
    def champion(self):
        return standing_champion(self.platform, self.line.loaded.name)

    def score(self, given, output="scores.parquet", **options):
        return score_file(self.line.loaded, self.platform, str(given), self.folder / output, **options)

    def saved(self, frame, name):
        path = self.folder / name
        if path.suffix == ".csv":
            frame.to_csv(path, index=False)
        elif path.suffix == ".parquet":
            frame.to_parquet(path, index=False)
        else:
            write_deltalake(str(path), pa.Table.from_pandas(frame, preserve_index=False), mode="overwrite")
        return path

    def left(self):
        return sorted(path.name for path in self.folder.iterdir())


def crowned(line):
    """Register the line's model and make it champion, whatever its gates would say."""
    version = register_version(line.loaded, line.platform, line.run, line.trained, {})
    client = Tracking(line.platform).client
    client.set_registered_model_alias(version.name, CHAMPION, version.version)
    return line


@pytest.fixture(scope="module")
def champions(tmp_path_factory, first_line, moved_platform, train_line):
    """A champion for each kind of target, on one platform; trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("champions")
    platform = moved_platform(first_line.platform, folder / "data")
    made = {"integer": crowned(replace(first_line, platform=platform))}

    def champion(target):
        if target not in made:
            rename = {"name": f"patients_{target}"}
            made[target] = crowned(
                train_line(folder / target, platform, target, lambda spec: spec.update(rename))
            )
        return made[target]

    return champion


@pytest.fixture
def serving(champions, tmp_path):
    """The integer target's champion; tests that write to the registry ask for `line`."""
    folder = tmp_path / "batch"
    folder.mkdir()
    return Serving(champions("integer"), folder)


def read(outcome):
    path = Path(outcome.output)
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# What comes out


@pytest.mark.parametrize("given", ["in.csv", "in.parquet", "in_delta"])
@pytest.mark.parametrize("output", ["scores.csv", "scores.parquet"])
def test_every_input_is_scored_to_what_the_model_itself_says(serving, patients, given, output):
    rows = patients()
    path = serving.saved(rows, given)

    outcome = serving.score(path, output, chunk_rows=100)

    assert (outcome.rows, outcome.scored_rows, outcome.rejected_rows) == (569, 569, 0)
    scored = read(outcome)
    assert list(scored) == ["id", "prediction", "score", "model_name", "model_version"]
    asked = pa.Table.from_pandas(rows, preserve_index=False)
    model, inputs = (
        load_version(serving.platform, serving.champion),
        model_inputs(asked, serving.line.loaded.spec),
    )
    assert scored["id"].tolist() == rows["id"].tolist()
    np.testing.assert_allclose(scored["score"], model.predict_proba(inputs)[:, 1], rtol=1e-12)
    assert scored["prediction"].tolist() == model.predict(inputs).tolist()
    assert set(scored["model_name"]) == {"patients"}
    assert set(scored["model_version"].astype(str)) == {"1"}
    assert outcome.mean_score == pytest.approx(scored["score"].mean())
    assert outcome.rejected is None


KINDS = {
    "string": pa.string(),
    "boolean": pa.bool_(),
    "multiclass": pa.string(),
    "regression": pa.float64(),
}


@pytest.mark.slow
@pytest.mark.parametrize("target", KINDS)
def test_every_kind_of_target_is_scored_in_its_own_type(champions, patients, tmp_path, target):
    serving = Serving(champions(target), tmp_path)
    rows = patients(target)

    outcome = serving.score(serving.saved(rows, "in.parquet"), chunk_rows=7)

    scored = pq.read_table(outcome.output)
    assert scored.schema.field("prediction").type == KINDS[target]
    asked = pa.Table.from_pandas(rows, preserve_index=False)
    model, inputs = (
        load_version(serving.platform, serving.champion),
        model_inputs(asked, serving.line.loaded.spec),
    )
    assert scored["prediction"].to_pylist() == model.predict(inputs).tolist()
    if target == "regression":
        assert scored["score"].to_pylist() == scored["prediction"].to_pylist()
    elif target == "multiclass":
        np.testing.assert_allclose(scored["score"], model.predict_proba(inputs).max(axis=1))
    else:
        np.testing.assert_allclose(scored["score"], model.predict_proba(inputs)[:, 1])


def test_columns_in_another_order_and_columns_too_many_change_nothing(serving, patients):
    rows = patients()
    plain = serving.score(serving.saved(rows[ENTITY_AND_FEATURES], "plain.parquet"), "plain_out.parquet")
    shuffled = rows[ENTITY_AND_FEATURES[::-1]].assign(note="x", nested=[{"a": 1}] * len(rows))

    other = serving.score(serving.saved(shuffled, "other.parquet"), "other_out.parquet")

    pd.testing.assert_frame_equal(read(plain), read(other))


def test_a_snapshot_is_scored_like_a_file(serving, patients):
    snapshot = serving.line.gold

    outcome = score_snapshot(
        serving.line.loaded, serving.platform, snapshot, serving.folder / "all.parquet", chunk_rows=100
    )
    again = score_snapshot(
        serving.line.loaded, serving.platform, snapshot, serving.folder / "all.parquet", chunk_rows=100
    )

    assert outcome.rows == snapshot.rows
    assert again == outcome.model_copy(update={"unchanged": True})
    by_file = serving.score(serving.saved(patients(), "in.csv"), "file.parquet", chunk_rows=100)
    pd.testing.assert_frame_equal(read(outcome), read(by_file))


def test_an_integer_column_with_gaps_is_scored_whatever_parquet_holds_it_as(serving, patients):
    rows = patients()
    assert rows["visits"].isna().any()
    texts = rows.assign(ward=rows["ward"].astype("category"), visits=rows["visits"].astype("float32"))

    whole = serving.score(serving.saved(rows, "whole.parquet"), "whole_out.parquet")
    floats = serving.score(serving.saved(texts, "floats.parquet"), "floats_out.parquet")

    assert whole.rejected_rows == floats.rejected_rows == 0
    pd.testing.assert_frame_equal(read(whole), read(floats))


def test_the_champion_gets_its_own_inputs_when_the_spec_has_moved_on(serving, patients):
    spec = yaml.safe_load(serving.line.loaded.path.read_text())
    spec["features"] |= {"numeric": ["radius"], "categorical": ["ward", "visits"]}
    (serving.folder / "model.yaml").write_text(yaml.safe_dump(spec))
    from deployments.spec import load_spec

    changed = load_spec(serving.folder / "model.yaml")
    path = serving.saved(patients(), "in.parquet")
    outcome = serving.score(path, "before.parquet")

    after = score_file(changed, serving.platform, str(path), serving.folder / "after.parquet")

    pd.testing.assert_frame_equal(read(after), read(outcome))


# What is refused


def test_a_missing_column_is_named(serving, patients):
    path = serving.saved(patients().drop(columns=["texture", "id"]), "in.csv")

    with pytest.raises(BadInputError, match="missing columns: id, texture") as refused:
        serving.score(path)

    assert refused.value.exit_code == 2
    assert serving.left() == ["in.csv"]


def broken(rows, count):
    rows = rows.copy()
    rows.loc[: count - 1, "radius"] = -1.0
    rows.loc[[count], "ward"] = "attic"
    return rows


def test_invalid_rows_are_set_aside_with_their_reasons(serving, patients):
    path = serving.saved(broken(patients(), 3).head(100), "in.csv")

    outcome = serving.score(path, chunk_rows=3)

    assert (outcome.scored_rows, outcome.rejected_rows) == (96, 4)
    assert outcome.failures == {"radius: min": 3, "ward: values": 1}
    assert outcome.rejected == str(rejected_path(Path(outcome.output)))
    rejected = pd.read_parquet(outcome.rejected)
    assert rejected["id"].tolist() == ["0", "1", "2", "3"]
    assert rejected["contract_failures"].tolist() == ["radius: min"] * 3 + ["ward: values"]
    assert read(outcome)["id"].tolist() == list(range(4, 100))


def test_too_many_invalid_rows_stop_it_and_nothing_is_left(serving, patients):
    path = serving.saved(broken(patients(), 60), "in.parquet")

    with pytest.raises(BadInputError, match=r"61 of 569 rows break the contract.*radius: min: 60") as refused:
        serving.score(path, chunk_rows=100)

    assert refused.value.exit_code == 2
    assert serving.left() == ["in.parquet"]


def test_no_rows_are_an_error(serving, patients):
    for name in ("in.csv", "in.parquet"):
        path = serving.saved(patients().head(0), name)
        with pytest.raises(BadInputError, match="no rows"):
            serving.score(path)

    assert serving.left() == ["in.csv", "in.parquet"]


def test_rules_that_speak_of_the_target_are_left_out(serving, patients):
    contract = input_contract(serving.line.loaded.spec)
    path = serving.saved(patients()[ENTITY_AND_FEATURES], "in.parquet")

    assert [rule.name for rule in contract.rules] == ["smooth"]
    assert "target" not in contract.columns
    assert serving.score(path).rejected_rows == 0


def test_without_a_champion_there_is_nothing_to_score_with(line, patients, tmp_path):
    patients().to_csv(tmp_path / "in.csv", index=False)

    with pytest.raises(BadInputError, match="patients has no champion yet; train and promote one first"):
        score_file(line.loaded, line.platform, str(tmp_path / "in.csv"), tmp_path / "out.csv")

    with pytest.raises(BadInputError, match="no champion"):
        require_champion(line.platform, "patients", standing_champion(line.platform, "patients"))


def test_a_champion_whose_file_was_changed_scores_nothing(line, patients, tmp_path):
    crowned(line)
    (skops,) = line.platform.root.rglob("model.skops")
    skops.write_bytes(skops.read_bytes() + b"\0")
    patients().to_csv(tmp_path / "in.csv", index=False)

    with pytest.raises(ContenderError, match="its digest is"):
        score_file(line.loaded, line.platform, str(tmp_path / "in.csv"), tmp_path / "out.csv")

    assert not list(tmp_path.glob("*out.csv*"))


def test_a_champion_that_answers_nan_writes_nothing(serving, patients, monkeypatch):
    def silent(model, inputs, target):
        from tasks.metrics import Outputs

        return Outputs(np.full(len(inputs), np.nan))

    monkeypatch.setattr(score, "outputs_of", silent)

    with pytest.raises(ContenderError, match="not a number"):
        serving.score(serving.saved(patients(), "in.csv"))

    assert serving.left() == ["in.csv"]


@pytest.mark.parametrize("output", ["scores.json", "scores", "scores.csv.gz"])
def test_an_output_of_an_unknown_kind_is_refused(serving, patients, output):
    with pytest.raises(BadInputError, match=r"written to .csv or .parquet"):
        serving.score(serving.saved(patients(), "in.csv"), output)


def test_a_missing_folder_is_made_and_one_that_cannot_be_is_an_error(serving, patients):
    path = serving.saved(patients(), "in.csv")

    assert Path(serving.score(path, "new/deep/scores.csv").output).exists()

    with pytest.raises(BadInputError, match="cannot be written"):
        serving.score(path, "in.csv/scores.csv")


def test_an_entity_called_like_an_output_column_is_refused(serving):
    spec = serving.line.loaded.spec
    features = spec.features.model_copy(update={"entity": ("score",)})
    columns = spec.feature_contract.columns | {"score": spec.feature_contract.columns["id"]}
    contract = spec.feature_contract.model_copy(update={"columns": columns})

    with pytest.raises(BadInputError, match="rename it"):
        score._present(
            spec.model_copy(update={"features": features}), contract, ["score", *ENTITY_AND_FEATURES], "in"
        )


# Never over another output


def test_the_same_scoring_again_is_found_done(serving, patients):
    path = serving.saved(broken(patients(), 2), "in.csv")
    first = serving.score(path)
    before = files(serving.folder)

    again = serving.score(path)

    assert again == first.model_copy(update={"unchanged": True})
    assert files(serving.folder) == before


@pytest.mark.parametrize("given", ["in.csv", "in.parquet", "in_delta"])
def test_changed_rows_of_the_same_size_and_time_are_not_reported_as_scored(serving, patients, given):
    rows = patients()
    path = serving.saved(rows, given)
    serving.score(path)
    before = path.stat()
    serving.saved(rows.assign(radius=rows["radius"].to_numpy()[::-1]), given)
    if path.is_file():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(BadInputError, match="scores of other rows"):
        serving.score(path)


def test_another_version_does_not_pass_for_the_one_that_scored(line, patients, tmp_path):
    crowned(line)
    serving = Serving(line, tmp_path / "batch")
    serving.folder.mkdir()
    path = serving.saved(patients(), "in.csv")
    serving.score(path)
    run = Tracking(line.platform).create_run(line.run.experiment_id, "again", {})
    MlflowClient(line.platform.mlflow.tracking_uri).log_artifact(run, str(line.loaded.path))
    other = line.run.model_copy(update={"run_id": run})
    version = register_version(line.loaded, line.platform, other, line.trained, {})
    Tracking(line.platform).client.set_registered_model_alias("patients", CHAMPION, version.version)

    with pytest.raises(BadInputError, match="another version"):
        serving.score(path)


@pytest.mark.parametrize("name", ["scores.csv", "scores.csv.rejected.parquet", "scores.csv.manifest.json"])
def test_a_file_of_something_else_is_never_written_over(serving, patients, name):
    path = serving.saved(broken(patients(), 2), "in.csv")
    (serving.folder / name).write_text("mine")

    with pytest.raises(BadInputError, match=f"{name}: this file exists already") as refused:
        serving.score(path, "scores.csv")

    assert refused.value.exit_code == 2
    assert files(serving.folder) == {"in.csv": path.read_bytes(), name: b"mine"}


def test_an_output_changed_by_hand_is_neither_believed_nor_written_over(serving, patients):
    path = serving.saved(patients(), "in.csv")
    output = Path(serving.score(path, "scores.csv").output)
    output.write_text(output.read_text().replace("patients", "Patients", 1))

    with pytest.raises(BadInputError, match="changed since it was written"):
        serving.score(path, "scores.csv")


def test_an_output_taken_away_takes_what_lay_beside_it_along(serving, patients):
    path = serving.saved(broken(patients(), 2), "in.csv")
    Path(serving.score(path).output).unlink()
    serving.saved(patients(), "in.csv")

    outcome = serving.score(path)

    assert outcome.rejected is None
    assert serving.left() == ["in.csv", "scores.parquet", "scores.parquet.manifest.json"]


def test_two_outputs_of_one_stem_keep_their_rejected_rows_apart(serving, patients):
    first = serving.score(serving.saved(broken(patients(), 2), "a.csv"), "scores.csv")
    second = serving.score(serving.saved(broken(patients(), 3), "b.csv"), "scores.parquet")

    assert [len(pd.read_parquet(outcome.rejected)) for outcome in (first, second)] == [3, 4]


# Killed on the way

SCORED = """
    import os, signal, sys
    from pathlib import Path

    from deployments.environment import Environment, LocalPlatformConfig
    from deployments.spec import load_spec
    from platforms.local import LocalPlatform
    from tasks import score

    root, spec, given, output, rows, deadly = sys.argv[1:]
    environment = Environment(name="dev", platform=LocalPlatformConfig(data_root="data"))
    put, after, written = score._write_whole, int(deadly), []

    def counted(path, content):
        put(path, content)
        written.append(path.name)
        if after and sum(name[0].isdigit() for name in written) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    score._write_whole = counted
    score.score_file(
        load_spec(spec), LocalPlatform(environment, Path(root)), given, Path(output), chunk_rows=int(rows)
    )
"""


def in_a_process(serving, given, output="scores.parquet", rows=100, killed_after=0, script=SCORED):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            dedent(script),
            *map(str, (serving.platform.root, serving.line.loaded.path, given)),
            str(serving.folder / output),
            str(rows),
            str(killed_after),
        ],
        cwd=serving.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def counted(monkeypatch):
    """How many rows the model is asked about."""
    asked, real = [], score.outputs_of

    def counting(model, inputs, target):
        asked.append(len(inputs))
        return real(model, inputs, target)

    monkeypatch.setattr(score, "outputs_of", counting)
    return asked


@pytest.mark.slow
def test_a_scoring_killed_on_the_way_carries_on_to_the_same_bytes(serving, patients, counted):
    path = serving.saved(broken(patients(), 3), "in.csv")
    whole = serving.score(path, "whole.parquet", chunk_rows=100)
    counted.clear()
    killed = in_a_process(serving, path, killed_after=4)
    assert killed.returncode == -signal.SIGKILL
    assert not (serving.folder / "scores.parquet").exists()

    resumed = serving.score(path, chunk_rows=100)

    assert counted == [100, 69]
    assert Path(resumed.output).read_bytes() == Path(whole.output).read_bytes()
    assert Path(resumed.rejected).read_bytes() == Path(whole.rejected).read_bytes()
    assert resumed.failures == whole.failures
    assert resumed.mean_score == whole.mean_score
    assert not list(serving.folder.glob(".*"))


class Killed(BaseException):
    """Stands for SIGKILL."""


def stopped_after(serving, path, parts, monkeypatch, **options):
    """Score until so many parts are kept."""
    real = score._Scorer.part

    def part(self, index, *rest):
        if index == parts:
            raise Killed
        return real(self, index, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(score._Scorer, "part", part)
        with pytest.raises(Killed):
            serving.score(path, **options)


def test_parts_of_other_rows_are_not_mixed_in(serving, patients, monkeypatch, counted):
    rows = broken(patients(), 3)
    path = serving.saved(rows, "in.parquet")
    stopped_after(serving, path, 4, monkeypatch, chunk_rows=100)
    # The first rows are mended: where there were rejected ones, there are none now.
    changed = rows.assign(radius=rows["radius"].abs(), ward=rows["ward"].replace("attic", "elm"))
    serving.saved(changed, "in.parquet")
    counted.clear()

    outcome = serving.score(path, chunk_rows=100)

    assert counted == [100, 100, 69]
    assert (outcome.rejected, outcome.rejected_rows, outcome.failures) == (None, 0, {})
    other = serving.score(path, "other.parquet", chunk_rows=100)
    assert Path(outcome.output).read_bytes() == Path(other.output).read_bytes()
    assert not rejected_path(Path(outcome.output)).exists()


def test_parts_beyond_the_end_of_a_shorter_input_are_not_mixed_in(serving, patients, monkeypatch):
    rows = patients()
    late = rows.assign(radius=rows["radius"].where(rows["id"] < 450, -1.0).where(rows["id"] < 460, 5.0))
    path = serving.saved(late, "in.parquet")
    stopped_after(serving, path, 5, monkeypatch, chunk_rows=100)
    serving.saved(late.head(300), "in.parquet")

    outcome = serving.score(path, chunk_rows=100)

    assert outcome.rows == outcome.scored_rows == len(read(outcome)) == 300
    assert outcome.rejected is None


def test_parts_of_another_chunk_size_are_cleared(serving, patients, monkeypatch, counted):
    path = serving.saved(patients(), "in.parquet")
    stopped_after(serving, path, 2, monkeypatch, chunk_rows=100)
    counted.clear()

    outcome = serving.score(path, chunk_rows=50)

    assert sum(counted) == 569
    assert len(read(outcome)) == 569


@pytest.mark.slow
def test_a_kill_at_any_step_of_the_last_move_is_made_good(serving, patients, monkeypatch):
    path = serving.saved(broken(patients(), 3), "in.csv")
    whole = serving.score(path, "whole.parquet", chunk_rows=300)
    for name in ("_concatenate", "_write_whole", "_put", "_clear"):
        for last in (1, 2, 3, 4):
            left, real = [last], getattr(score, name)

            def deadly(*arguments, real=real, left=left):
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
                return real(*arguments)

            with monkeypatch.context() as patched:
                patched.setattr(score, name, deadly)
                with suppress(Killed):
                    serving.score(path, chunk_rows=300)

            again = serving.score(path, chunk_rows=300)

            assert Path(again.output).read_bytes() == Path(whole.output).read_bytes()
            assert Path(again.rejected).read_bytes() == Path(whole.rejected).read_bytes()
            assert serving.score(path, chunk_rows=300).unchanged
            assert not list(serving.folder.glob(".*"))
            Path(again.output).unlink()


def test_only_one_process_scores_into_a_file(serving, patients, monkeypatch):
    path = serving.saved(patients(), "in.csv")
    real = score._Scorer.part

    def part(self, index, *rest):
        with pytest.raises(BadInputError, match="another process is scoring into this file"):
            serving.score(path, chunk_rows=50)
        return real(self, index, *rest)

    monkeypatch.setattr(score._Scorer, "part", part)

    assert serving.score(path).scored_rows == 569


# Any size


def test_chunks_are_asked_for_one_at_a_time(serving, patients, monkeypatch):
    rows = pa.Table.from_pandas(patients()[ENTITY_AND_FEATURES], preserve_index=False)
    read_on = []

    def stream(*arguments, **named):
        def batches():
            for place in range(50):
                read_on.append(place)
                yield from rows.to_batches()

        return pa.RecordBatchReader.from_batches(rows.schema, batches())

    monkeypatch.setattr(score, "read_source", stream)
    real, ahead = score._Scorer.part, []

    def part(self, index, *rest):
        ahead.append(len(read_on) - index)
        return real(self, index, *rest)

    monkeypatch.setattr(score._Scorer, "part", part)

    outcome = serving.score("in.parquet", chunk_rows=569)

    assert outcome.rows == 50 * 569
    assert max(ahead) <= 2


MEASURED = """
    import resource, sys
    from pathlib import Path

    import pyarrow.parquet as pq

    from deployments.environment import Environment, LocalPlatformConfig
    from deployments.spec import load_spec
    from platforms.local import LocalPlatform
    from tasks.score import score_file

    root, spec, given, output, rows, copies = sys.argv[1:]
    platform = LocalPlatform(
        Environment(name="dev", platform=LocalPlatformConfig(data_root="data")), Path(root)
    )
    some = pq.read_table(given)
    for count in (120, int(copies)):
        with pq.ParquetWriter(given, some.schema) as writer:
            for _ in range(count):
                writer.write_table(some)
        outcome = score_file(
            load_spec(spec), platform, given, Path(output).with_stem(str(count)), chunk_rows=int(rows)
        )
        print(outcome.scored_rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(serving, patients):
    path = serving.saved(patients()[ENTITY_AND_FEATURES], "in.parquet")

    done = in_a_process(serving, path, rows=50_000, killed_after=1200, script=MEASURED)

    (few, low), (many, high) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few, many) == (120 * 569, 1200 * 569)
    assert high - low < 100, done.stdout


def test_the_manifest_says_what_the_scores_are_of(serving, patients):
    path = serving.saved(patients(), "in.csv")
    outcome = serving.score(path)

    said = json.loads((serving.folder / "scores.parquet.manifest.json").read_text())

    assert said["plan"]["source"] == str(path)
    assert said["plan"]["model_digest"] == serving.line.trained.digest
    assert said["outcome"]["rows"] == outcome.rows
