"""`total_epochs` shared exactly, and the studies that are one word: which jobs, at which budgets."""

import pytest
from omegaconf import OmegaConf
from refusals import fault

from compresskd.config.build import resolved
from compresskd.config.compose import compose_jobs
from compresskd.config.faults import ConfigError
from compresskd.config.parts import Parts
from compresskd.config.schema import register
from compresskd.config.shipped import conf_dir

STRATEGIES = sorted(p.stem for p in (conf_dir() / "strategy").glob("*.yaml"))
TRAINS_NOTHING = {"compress"}


@pytest.fixture(autouse=True)
def _registered():
    register()


def composed(*overrides):
    (job,) = compose_jobs(overrides).jobs
    assert job.faults == []
    return job.config


def epochs_of(config):
    """By stage of the built strategy, ladders expanded: the epochs that it trains."""
    strategy = Parts(config).strategy()
    assert strategy is not None
    return {name: stage.epochs for name, stage in strategy.stages.items() if hasattr(stage, "epochs")}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_stages_of_every_strategy_come_to_the_budget(strategy):
    epochs = epochs_of(resolved(composed(f"strategy={strategy}", "total_epochs=24")))
    assert sum(epochs.values()) == (0 if strategy in TRAINS_NOTHING else 24)
    assert len(set(epochs.values())) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "budget"), [(2, 24), (3, 24), (5, 24)])
def test_a_ladder_counts_its_steps(steps, budget):
    typed = ("strategy=multi_stage", f"rank_schedule.num_stages={steps}", f"total_epochs={budget}", "rank=4")
    epochs = epochs_of(resolved(composed(*typed)))
    assert len(epochs) == steps + 1
    assert set(epochs.values()) == {budget // (steps + 1)}


def test_what_a_stage_or_a_step_sets_itself_counts():
    config = resolved(composed("strategy.stages.finetune.epochs=5", "total_epochs=24"))
    assert epochs_of(config) == {"distill": 19, "finetune": 5}
    steps = "rank_schedule.stages=[{rank: 8, epochs: 4}, {rank: 4}]"
    config = resolved(composed("strategy=multi_stage", "rank_schedule=explicit", steps, "total_epochs=24"))
    assert epochs_of(config) == {"distill": 10, "step_1_r8": 4, "step_2_r4": 10}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("bits=4",), {"distill": 8, "factorize": None, "finetune": 8, "quantize": 8}),
        (("bits=4", "quant.epochs=4"), {"distill": 10, "factorize": None, "finetune": 10, "quantize": 4}),
        (("bits=4", "quant.mode=ptq"), {"distill": 12, "factorize": None, "finetune": 12, "quantize": 0}),
        (("bits=4", "quant.mode=none"), {"distill": 12, "factorize": None, "finetune": 12}),
        (("strategy=distill_qat",), {"distill": 12, "quantize": 12}),
        (("strategy=distill_qat", "quant.enabled=false"), {"distill": 24}),
    ],
)
def test_quantization_aware_training_counts(options, expected):
    epochs = epochs_of(resolved(composed(*options, "total_epochs=24")))
    assert epochs == {name: count for name, count in expected.items() if count is not None}


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ("strategy=multi_stage", "total_epochs=3"),
            fault("total_epochs", "3", "4 training stage", "multi_stage", "4 or 8"),
        ),
        (
            ("strategy=multi_stage", "total_epochs=26"),
            fault("total_epochs", "26", "4 training stage", "multi_stage", "24 or 28"),
        ),
        (
            ("strategy=distill", "total_epochs=0"),
            fault("total_epochs", "0", "1 training stage", "distill", "1 or 2"),
        ),
        (
            ("strategy.stages.finetune.epochs=5", "total_epochs=5"),
            fault(
                "total_epochs",
                "5",
                "1 training stage",
                "distill_then_compress",
                "5 epochs that are set",
                "6 or 7",
            ),
        ),
    ],
)
def test_a_budget_that_cannot_be_shared_is_refused(overrides, text):
    with pytest.raises(ConfigError) as raised:
        resolved(composed(*overrides))
    (line,) = str(raised.value).splitlines()[1:]
    assert text.match(line)


def test_the_teacher_keeps_its_epochs():
    plain = resolved(composed("epochs=7", "strategy=multi_stage", "total_epochs=8"))
    assert (plain["epochs"], plain["teacher_fit"]["epochs"]) == (2, 7)
    own = resolved(composed("strategy=multi_stage", "total_epochs=8", "teacher_fit.epochs=50"))
    assert own["teacher_fit"]["epochs"] == 50


def test_a_recorded_configuration_is_shared_no_further():
    config = resolved(composed("strategy=multi_stage", "total_epochs=24"))
    assert resolved(OmegaConf.create(config)) == config


def test_without_a_budget_nothing_changes():
    assert resolved(composed("strategy=multi_stage", "epochs=7"))["epochs"] == 7


def test_faults_of_a_schedule_are_not_raised_here():
    falling = composed("strategy=multi_stage", "rank_schedule.ratio=0.5", "total_epochs=24")
    odd = composed("strategy=multi_stage", "total_epochs=24")
    OmegaConf.update(odd, "strategy.stages.step.stages", [3], force_add=True)
    for cfg in (falling, odd):
        assert resolved(cfg)["epochs"] == 30


# Studies


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in (conf_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_is_one_word(name):
    plan = compose_jobs([f"experiment={name}"])
    assert [job.faults for job in plan.jobs] == [[]] * len(plan.jobs)
    assert plan.multirun is (len(plan.jobs) > 1)
    for config in (resolved(job.config) for job in plan.jobs[:1]):
        assert Parts(config).strategy().stages or config["strategy"]["name"] == "train"


@pytest.mark.slow
def test_compare_strategies_is_every_strategy_at_one_budget():
    plan = compose_jobs(["experiment=compare_strategies"])
    assert plan.multirun
    configs = [resolved(job.config) for job in plan.jobs]
    names = {config["strategy"]["name"] for config in configs}
    other = {name for name in STRATEGIES if name.endswith(("layerwise", "blockwise"))} | {"distill_qat"}
    assert names == set(STRATEGIES) - other
    assert len(configs) == 3 * len(names)
    assert {config["seed"] for config in configs} == {0, 1, 2}
    for config in configs:
        expected = 0 if config["strategy"]["name"] in TRAINS_NOTHING else 24
        assert sum(epochs_of(config).values()) == expected
        assert config["teacher_fit"]["epochs"] == 24
    assert (
        len({str((c["teacher"], c["teacher_fit"], c["data"])) for c in configs}) == 1
    )  # one teacher for all


def test_values_on_the_command_line_take_the_place_of_the_study_s():
    plan = compose_jobs(["experiment=compare_strategies", "strategy=distill,compress", "rank=4,8", "seed=0"])
    assert len(plan.jobs) == 4
    assert {(job.config.strategy.name, job.config.rank) for job in plan.jobs} == {
        (strategy, rank) for strategy in ("distill", "compress") for rank in (4, 8)
    }


@pytest.mark.slow
def test_progressive_rank_is_a_ladder_against_one_jump():
    plan = compose_jobs(["experiment=progressive_rank"])
    assert plan.multirun
    configs = [resolved(job.config) for job in plan.jobs]
    assert [(c["strategy"]["name"], c["seed"]) for c in configs] == [
        (strategy, seed) for strategy in ("multi_stage", "distill_then_compress") for seed in (0, 1, 2)
    ]
    ladder, jump = epochs_of(configs[0]), epochs_of(configs[3])
    assert ladder == {"distill": 6, "step_1_r16": 6, "step_2_r8": 6, "step_3_r4": 6}
    assert jump == {"distill": 12, "finetune": 12}
