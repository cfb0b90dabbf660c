from pathlib import Path

import pandas as pd
import pytest
from prefect.server.api.server import SubprocessASGIServer

from deployments.environment import load_environment
from deployments.errors import BadInputError
from flows.deliver import deliver
from flows.promote import promote
from flows.score import score
from flows.train import train
from platforms import platform_for
from tasks.outcome import GatesRefusedError
from tasks.register import PromotionRefusedError, ledger_of
from tasks.tracking import Tracking
from tasks.train import DirtyTreeError
from tasks.validate import ContractBroken
from tasks.verdict import Verdict

ROOT = Path(__file__).resolve().parents[2]
TELCO = ROOT.parent / "shared" / "data" / "telco-churn.csv"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "home")]


@pytest.fixture
def dev():
    return platform_for(load_environment("dev"))


def aliases(platform, model):
    registered = Tracking(platform).client.get_registered_model(platform.registered_model(model))
    return {alias: str(number) for alias, number in dict(registered.aliases).items()}


def test_a_model_of_several_classes_goes_from_csv_to_scored_champion(make_model, dev):
    assert_scored_champion(deliver(str(make_model("multiclass"))), dev)


def test_a_binary_model_goes_from_csv_to_scored_champion(promoted, dev):
    assert_scored_champion(promoted.outcome, dev)


def assert_scored_champion(outcome, platform):
    assert outcome.trained.verdict is Verdict.PASS
    assert {result.verdict for result in outcome.trained.gates.results} == {Verdict.PASS}
    assert outcome.champion.aliases == ("champion",)
    assert aliases(platform, outcome.trained.model) == {"champion": "1"}
    scored = pd.read_parquet(outcome.scored.output)
    assert len(scored) == outcome.scored.scored_rows == outcome.trained.gold.rows
    assert set(scored["model_version"]) == {"1"}


def test_training_again_with_nothing_new_is_nothing_to_do(promoted, dev):
    first = promoted.outcome

    second = deliver(str(promoted.model))

    assert not first.trained.unchanged
    assert second.trained.unchanged
    assert second.trained.run_id == first.trained.run_id
    assert second.scored.unchanged
    assert aliases(dev, "binary_model") == {"champion": "1"}


def test_the_same_training_forced_again_gives_the_same_model_and_metrics(promoted):
    first = promoted.outcome.trained

    again = train(str(promoted.model), force=True)

    assert again.run_id != first.run_id
    assert again.trained.digest == first.trained.digest
    assert again.evaluation.metrics == first.evaluation.metrics


def test_a_second_model_is_compared_on_rows_the_champion_was_not_trained_on_and_may_replace_it(
    promoted, make_model, dev
):
    def split_otherwise(spec):
        spec["split"]["seed"] = 1

    model = str(make_model("binary", split_otherwise))

    outcome = train(model)

    compared = outcome.evaluation.comparison
    assert compared is not None
    assert compared.version == "1"
    assert compared.excluded > 0
    assert compared.rows + compared.excluded == outcome.evaluation.rows
    gate = next(result for result in outcome.gates.results if result.gate.startswith("champion"))
    assert "version 1" in gate.reason
    assert aliases(dev, "binary_model") == {"champion": "1", "challenger": "2"}

    assert promote(model).version == "2"

    assert aliases(dev, "binary_model") == {"champion": "2", "previous": "1"}


def ask_too_much(spec):
    spec["gates"].append({"kind": "metric", "metric": "brier", "max": 0.000001})


def test_a_gate_that_does_not_pass_registers_nothing_and_fails_the_flow(make_model, dev):
    with pytest.raises(GatesRefusedError, match="metric brier: fail") as refused:
        train(str(make_model("binary", ask_too_much)))

    assert refused.value.exit_code == 3
    assert refused.value.outcome.version is None
    assert Tracking(dev).client.search_registered_models() == []
    assert [entry.event for entry in ledger_of(dev).entries()] == ["model.refused"]


def test_a_refused_challenger_leaves_the_champion_serving(promoted, make_model, dev):
    with pytest.raises(GatesRefusedError):
        train(str(make_model("binary", ask_too_much)))

    assert aliases(dev, "binary_model") == {"champion": "1"}
    assert score(str(make_model("binary"))).version == "1"


def test_broken_data_stops_before_training_and_says_where(make_model, dev):
    def tighten(spec):
        spec["contract"]["rows"]["columns"]["mean_radius"]["max"] = 20

    with pytest.raises(ContractBroken, match=r"mean_radius: max: [\d,]+ rows") as broken:
        train(str(make_model("binary", tighten)))

    assert broken.value.exit_code == 2
    assert Tracking(dev).client.search_registered_models() == []
    runs = Tracking(dev).client.search_runs([Tracking(dev).experiment("binary_model")])
    assert [run.data.tags["contender.contract"] for run in runs] == ["fail"]


def test_a_misspelt_parameter_of_an_estimator_is_found_before_any_data_is_read(make_model, home):
    def misspell(spec):
        spec["training"]["candidates"][0]["params"] = {"max_itr": 100}

    with pytest.raises(
        BadInputError, match=r"candidate 'linear'.*no parameter 'max_itr'; did you mean 'max_iter'"
    ):
        train(str(make_model("binary", misspell)))

    assert not list(home.glob("dev/tables/**/*.parquet"))


def test_an_environment_that_wants_committed_code_refuses_any_other(make_model, monkeypatch):
    from tasks import train as stage
    from tasks.code_version import code_version

    dirty = code_version().model_copy(update={"commit": "0" * 40, "dirty": True})
    monkeypatch.setattr(stage, "code_version", lambda: dirty)

    with pytest.raises(DirtyTreeError, match="commit or discard"):
        train(str(make_model("binary")), env="test")


def test_an_environment_that_wants_approvals_promotes_nothing_without_them(make_model, monkeypatch):
    from tasks import train as stage
    from tasks.code_version import code_version

    clean = code_version().model_copy(update={"commit": "0" * 40, "dirty": False})
    monkeypatch.setattr(stage, "code_version", lambda: clean)
    model = str(make_model("binary"))
    train(model, env="test")

    with pytest.raises(PromotionRefusedError, match="asks for signed approvals by reviewer"):
        promote(model, env="test")

    assert aliases(platform_for(load_environment("test")), "binary_model") == {"challenger": "1"}


@pytest.mark.parametrize("runner", ["processes", "dask"])
def test_candidates_train_the_same_in_processes_and_on_dask(
    promoted, make_model, home, furnish, tmp_path, monkeypatch, prefect_server, runner
):
    # A worker process that finds no server would start one, which outlives it where the worker is killed.
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    environment = tmp_path / "other.yaml"
    environment.write_text(
        "name: other\n"
        "platform: {kind: local, data_root: other}\n"
        "allow_dirty_tree: true\n"
        f"task_runner: {{kind: {runner}, workers: 2}}\n"
    )
    furnish(home / "other")

    # What comes after the training is the same everywhere, and a refusal spares most of it.
    with pytest.raises(GatesRefusedError) as refused:
        train(str(make_model("binary", ask_too_much, rows=400)), env=str(environment))

    # No server but the session's: one that Prefect starts unasked would hear of the candidates instead.
    assert not SubprocessASGIServer._instances
    threads, other = promoted.outcome.trained, refused.value.outcome
    assert other.trained.digest == threads.trained.digest
    scores = [[item.folds for item in outcome.leaderboard.candidates] for outcome in (threads, other)]
    assert scores[0] == scores[1]


@pytest.mark.skipif(not TELCO.exists(), reason="the Telco churn file is not beside the project")
def test_telco_passes_every_gate_on_the_real_file():
    outcome = train("telco", source=str(TELCO))

    assert outcome.verdict is Verdict.PASS
    assert outcome.gold.rows == 7043
    assert outcome.evaluation.metrics["roc_auc"].low > 0.8


def test_the_shipped_churn_model_passes_every_gate():
    assert train("churn").verdict is Verdict.PASS


def test_the_shipped_claims_model_passes_every_gate_and_leaves_personal_data_nowhere(home):
    from deployments.models.claims.simulator import simulate

    outcome = train("claims")

    assert outcome.verdict is Verdict.PASS
    assert outcome.version is not None
    people = simulate("claims", seed=11, claims=12000).read_all().slice(0, 300)
    wanted = {
        value.encode()
        for name in ("member_name", "national_id", "member_id")
        for value in people.column(name).to_pylist()
    }
    for path in home.rglob("*"):
        if path.is_file() and path.suffix not in {".lock"}:
            content = path.read_bytes()
            found = [value for value in wanted if value in content]
            assert not found, f"{path} holds {found[0]!r}"


def test_a_source_elsewhere_is_read_instead(make_model, tmp_path):
    model = make_model("binary", ask_too_much)
    elsewhere = tmp_path / "elsewhere.csv"
    pd.read_csv(model.parent / "data.csv").iloc[:300].to_csv(elsewhere, index=False)

    with pytest.raises(GatesRefusedError) as refused:
        train(str(model), source=str(elsewhere))

    assert refused.value.outcome.gold.rows == 300
