"""The comparison on planted runs: areas, crossings, pairing by seed, tuning, and what the reading claims."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from planted_race import METHODS, fill, plant
from poise.errors import ConfigError
from poise.eval.metrics import sign_flip_p_value
from poise.lab import compare
from poise.lab.compare_curves import area, crossing, table
from poise.lab.compare_figures import figures, learning_rates
from poise.lab.compare_intervals import Bounds, t_quantile, tail_of
from poise.lab.compare_methods import MATCHED, TUNING, load_methods, make_run, matched_methods, race_runs, tuning_runs
from poise.lab.compare_page import page, rates_table, rollouts_text, steps_table
from poise.lab.compare_queue import finished_below, is_finished
from poise.lab.compare_settings import QUICK, CompareSettings
from poise.lab.compare_stats import (
    Standing,
    best_rates,
    common_update_norm,
    own_update_norms,
    rank_correlation,
    seed_weights,
    standings,
)
from poise.runs.folder import RunFolder
from poise.runs.plan import make_plan


def test_area_of_literal_curves() -> None:
    x = np.array([0.0, 100.0, 200.0])
    assert area(x, np.array([0.2, 0.4, 0.6]), 200) == pytest.approx(0.4)
    assert area(x, np.array([0.2, 0.4, 0.6]), 100) == pytest.approx(0.3)  # what lies beyond the budget does not count
    assert area(x, np.array([0.2, 0.4, 0.6]), 150) == pytest.approx((0.3 * 100 + 0.45 * 50) / 150)
    assert area(x, np.array([0.2, 0.4, 0.6]), 400) == pytest.approx((0.4 * 200 + 0.6 * 200) / 400)  # flat after its end


def test_area_is_the_plain_sum_over_a_fine_grid() -> None:
    x, y = np.array([0.0, 30.0, 70.0, 110.0]), np.array([0.1, 0.5, 0.4, 0.9])
    total, steps = 0.0, 100_000
    for step in range(steps):
        total += float(np.interp((step + 0.5) * 100 / steps, x, y))
    assert area(x, y, 100) == pytest.approx(total / steps, abs=1e-8)


def test_crossing_of_literal_curves() -> None:
    x = np.array([0.0, 100.0, 200.0])
    assert crossing(x, np.array([0.2, 0.4, 0.6]), 0.5) == pytest.approx(150.0)
    assert crossing(x, np.array([0.2, 0.4, 0.6]), 0.1) == 0.0
    assert crossing(x, np.array([0.2, 0.6, 0.4]), 0.5) == pytest.approx(75.0)  # the first time counts
    assert math.isinf(crossing(x, np.array([0.2, 0.4, 0.6]), 0.7))


def test_a_curve_is_what_its_folder_says(tmp_path: Path) -> None:
    curve = plant(tmp_path, "poise", 0, [0.2, 0.4, 0.6])
    assert curve.accuracy.tolist() == [0.2, 0.4, 0.6]
    assert {name: values.tolist() for name, values in curve.costs.items()} == {
        "rollouts": [0, 100, 200],
        "tokens": [0, 1000, 2000],
        "wall_seconds": [0, 2, 4],
        "cpu_seconds": [0, 1.5, 3],
        "updates": [0, 2, 4],
    }
    assert curve.area == pytest.approx(0.4)
    assert curve.final(1) == 0.6
    assert curve.final(5) == pytest.approx(0.5)  # the evaluation before the first step is never among them
    assert curve.move("update_norm") == 0.5
    assert curve.move_at("kl_start", -1) == 0.02
    assert math.isnan(curve.move("variance_ratio"))
    assert table([curve])["accuracy"] == [0.2, 0.4, 0.6]


def test_accuracy_beyond_the_budget_counts_for_no_one(tmp_path: Path) -> None:
    """Evaluated at 100 and 200 rollouts of a budget of 150: what it would have had there is half way between."""
    curve = plant(tmp_path, "dapo", 0, [0.2, 0.4, 0.8])
    optimisation = replace(curve.run.settings.optimisation, rollout_budget=150)
    run = replace(curve.run, settings=replace(curve.run.settings, optimisation=optimisation))
    over = replace(curve, run=run)
    assert (curve.overshoot, over.overshoot) == (0, 50)
    assert over.final(1) == pytest.approx(0.6)
    assert over.final(2) == pytest.approx(0.5)
    race = [over, replace(curve, run=replace(run, method=METHODS["poise"]), accuracy=np.array([0.2, 0.7, 0.5]))]
    dapo, poise = standings(race, "dapo", final=1, resamples=10)
    assert dapo.final.mean == pytest.approx(0.6)
    assert poise.rollouts.mean == pytest.approx(80.0, abs=1.0)  # not 100 and more, where .8 would never be reached
    settings = CompareSettings(learning_rates=(1e-3,), rollouts=512, resamples=10)
    said = " ".join(page({"tuning": [], "race": race[:1], "matched": []}, METHODS, settings, norm=0.0).sentences)
    assert "Sampled beyond the budget, since a step cannot be halved: DAPO by 50 rollouts a run, at most 50." in said


def test_standings_pair_the_seeds(tmp_path: Path) -> None:
    """POISE is ahead of DAPO by 0.1 on every seed, though seeds differ by far more: the paired gap has no spread."""
    curves = []
    for seed, level in enumerate((0.1, 0.5, 0.3)):
        curves.append(plant(tmp_path, "dapo", seed, [0.0, level, level]))
        curves.append(plant(tmp_path, "poise", seed, [0.1, level + 0.1, level + 0.1]))
    dapo, poise = standings(curves, "dapo", final=1, resamples=200)
    assert dapo.area.mean == pytest.approx(0.75 * 0.3)
    assert dapo.area.low < 0.15 < 0.3 < dapo.area.high
    assert poise.area_gap.mean == pytest.approx(0.1)
    assert poise.area_gap.low == pytest.approx(0.1)
    assert poise.area_gap.high == pytest.approx(0.1)
    assert poise.p_value == pytest.approx(0.25)  # two of eight signs
    # DAPO's final accuracy is 0.3; the mean curve of POISE climbs from 0.1 to 0.4 over the first 100 rollouts.
    assert poise.rollouts.mean == pytest.approx(200 / 3, abs=0.5)
    assert dapo.rollouts.mean == pytest.approx(100.0, abs=0.5)


def test_only_seeds_that_all_methods_have_are_compared(tmp_path: Path) -> None:
    curves = [plant(tmp_path, "dapo", 0, [0.0, 0.2]), plant(tmp_path, "poise", 0, [0.0, 0.4])]
    curves.append(plant(tmp_path, "dapo", 1, [0.0, 1.0]))
    dapo, poise = standings(curves, "dapo", final=1, resamples=50)
    assert dapo.seeds == poise.seeds == 1
    assert dapo.area.mean == pytest.approx(0.1)


def test_a_target_that_is_not_reached_is_infinite(tmp_path: Path) -> None:
    curves = [plant(tmp_path, "dapo", seed, [0.0, 0.8]) for seed in (0, 1)]
    curves += [plant(tmp_path, "poise", seed, [0.0, 0.4 + 0.8 * seed]) for seed in (0, 1)]
    _, poise = standings(curves, "dapo", final=1, resamples=400)
    assert poise.rollouts.mean == pytest.approx(100.0, abs=1)
    assert math.isinf(poise.rollouts.high)
    assert 0.6 < poise.rollouts.known < 0.9  # resamples of the lower seed alone, a quarter of all, do not reach it
    assert rollouts_text(Bounds(1234.5, 1000.0, math.inf)) == "1,234 [1,000, not reached]"


def test_the_best_rate_is_chosen_on_the_tuning_seeds(tmp_path: Path) -> None:
    curves = [
        plant(tmp_path, method, seed, [0.0, level + 0.2 * seed], TUNING, rate)
        for method, levels in (("poise", {1e-4: 0.3, 1e-3: 0.5}), ("dapo", {1e-4: 0.4, 1e-3: 0.4}))
        for rate, level in levels.items()
        for seed in (0, 1)
    ]
    assert best_rates(curves) == {"poise": 1e-3, "dapo": 1e-4}  # of equals the smaller


def test_the_reading_counts_prompts_that_judge_tuning_and_race(tmp_path: Path) -> None:
    race, tuning = ([plant(tmp_path, name, 0, [0.2, 0.4], arm) for name in METHODS] for arm in ("race", TUNING))
    settings = CompareSettings(rollouts=512, resamples=10)
    curves = {"tuning": tuning, "race": race, "matched": []}
    assert "other seeds and another draw of prompts." in page(curves, METHODS, settings, norm=0.0).sentences[0]
    for runs, keys in ((race, "abc"), (tuning, "bcde")):
        file = RunFolder(runs[0].run.folder).evaluation_file(0)
        file.write_text(json.dumps({"results": [{"key": key} for key in keys]}))
    said = page(curves, METHODS, settings, norm=0.0).sentences[0]
    assert "another draw of prompts, though 2 of the race's 3 held-out ones are among them." in said


def test_rates_are_compared_on_the_seeds_that_all_have(tmp_path: Path) -> None:
    """The second seed is the easier one, and only the worse rate has finished it; DAPO has tried one rate."""
    tried = [("poise", 1e-4, 0, 0.3), ("poise", 1e-3, 0, 0.5), ("poise", 1e-4, 1, 0.9), ("dapo", 1e-4, 1, 0.4)]
    curves = [plant(tmp_path, name, seed, [0.0, level], TUNING, rate) for name, rate, seed, level in tried]
    assert best_rates(curves) == {"poise": 1e-3, "dapo": 1e-4}
    table = rates_table(curves, {"poise": "POISE", "dapo": "DAPO"})
    assert table.rows == [["POISE", "0.150", "0.250 ←"], ["DAPO", "0.200 ←", "–"]]
    assert learning_rates(curves, {"poise": "POISE", "dapo": "DAPO"}).axes[0].get_xticks().tolist() == [1e-4, 1e-3]


def test_update_norms_and_ranks(tmp_path: Path) -> None:
    """DAPO's seeds have norms 0.5, 0.6 and 9, so its own is 0.6; the common one is that of the method in the middle."""
    norms = {"dapo": (0.5, 0.6, 9.0), "poise": (0.2634567,), "rloo": (0.1, 0.2)}
    curves = [
        plant(tmp_path, method, seed, [0.0, 0.1, 0.2], norm=norm)
        for method, found in norms.items()
        for seed, norm in enumerate(found)
    ]
    own = own_update_norms(curves)
    assert own == {"dapo": 0.6, "poise": 0.2634567, "rloo": pytest.approx(0.15)}
    assert common_update_norm(own) == 0.263
    assert common_update_norm({"dapo": 0.6, "rloo": 0.15}) == 0.375  # of an even number the mean of the middle two
    assert common_update_norm(own | {"dapo": 60.0}) == 0.263  # one method of large steps does not move it
    assert common_update_norm({}) == 0.0
    assert rank_correlation({"a": 1, "b": 2, "c": 3}, {"a": 5, "b": 6, "c": 70}) == 1.0
    assert rank_correlation({"a": 1, "b": 1, "c": 3}, {"a": 0, "b": 1, "c": 2}) == pytest.approx(0.8660254)
    assert math.isnan(rank_correlation({"a": 1, "b": 2}, {"a": 1, "b": 2}))


def test_the_reading_says_where_poise_does_not_win(tmp_path: Path) -> None:
    settings = CompareSettings(learning_rates=(1e-3,), rollouts=512, held_out=9, resamples=100)
    race = [
        plant(tmp_path, method, seed, [0.2, level + seed / 100], norm=norm)
        for method, level, norm in (("poise", 0.4, 0.4), ("dapo", 0.5, 0.6), ("rloo", 0.3, 0.1))
        for seed in range(5)
    ]
    matched = [plant(tmp_path, curve.run.method.name, curve.run.seed, [0.2, 0.5], MATCHED) for curve in race]
    study = page({"tuning": [], "race": race, "matched": matched}, METHODS, settings, norm=0.4)
    said = " ".join(study.sentences)
    assert "Against DAPO over the budget: ahead none; behind POISE, RLOO; not told apart none" in said
    assert "Against POISE over the budget: ahead DAPO; behind RLOO; not told apart none" in said
    assert "the least p of 5 seeds is 0.062. Of 100 pairs of equal methods up to 6 would be called different" in said
    assert "POISE: mean accuracy over the budget 0.310" in said
    assert "], number 2 of 3; final" in said
    assert "every update stretched or shrunk to the norm 0.4 (the median over methods" in said
    assert "each took: DAPO 0.6, POISE 0.4, RLOO 0.1." in said
    assert study.facts["own_update_norms"] == {"poise": 0.4, "dapo": 0.6, "rloo": 0.1}
    assert "not told apart DAPO, RLOO" in said  # that arm was planted without a difference
    assert "first look" not in said
    assert [table.title.split(",")[0] for table in study.tables[:2]] == ["Standings", "Standings"]
    assert study.tables[0].rows[0][0] == "DAPO"
    assert set(study.figures) == {"accuracy", "costs", "areas", "steps", "accuracy_against_kl", "matched"}
    assert study.tables[2].title.startswith("Mean accuracy over the budget against POISE")
    assert study.tables[2].rows[0][::3] == ["DAPO", "ahead"]


def test_titles_are_shown_as_they_are_written(tmp_path: Path) -> None:
    titles = {"poise": "_mine", "dapo": "a $x^$", "rloo": "$1"}
    race = [plant(tmp_path, name, 0, [0.2, 0.4, 0.5]) for name in titles]
    found = figures(race, [], [], {"race": standings(race, "dapo", 1, 10)}, titles)
    for name, figure in found.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=20)
    assert [text.get_text() for text in found["accuracy"].legends[0].get_texts()] == [" _mine", r"a \$x^\$", r"\$1"]


def test_a_move_that_was_never_logged_is_no_number(tmp_path: Path) -> None:
    curve = plant(tmp_path, "poise", 0, [0.2, 0.4])
    moves = curve.moves | {"entropy": (np.empty(0), np.empty(0))}
    assert steps_table([replace(curve, moves=moves)], {"poise": "POISE"}).rows[0][4] == "–"


@pytest.mark.parametrize("seeds", [2, 4])
def test_few_seeds_call_nothing(tmp_path: Path, seeds: int) -> None:
    """Though POISE is ahead by the same on every seed."""
    settings = CompareSettings(learning_rates=(1e-3,), rollouts=512, resamples=100)
    race = [
        plant(tmp_path, method, seed, [0.2, level + seed / 100])
        for method, level in (("poise", 0.6), ("dapo", 0.3))
        for seed in range(seeds)
    ]
    said = " ".join(page({"tuning": [], "race": race, "matched": []}, METHODS, settings, norm=0.0).sentences)
    assert "are a first look" in said
    assert "so none can be called" in said
    assert "ahead none; behind none; not told apart POISE" in said


def test_interval_and_test_have_to_agree() -> None:
    """Five of five seeds ahead, four of five, and five of five in which the interval reaches zero."""
    for gaps, verdict in (([1, 2, 3, 2, 1], 1), ([-1, -2, -3, -2, -1], -1), ([3, 3, 3, 3, -0.1], 0)):
        gaps_S = np.array(gaps, float)
        gap = Bounds.of(seed_weights(5, 10_000, 0) @ gaps_S, 5)
        standing = Standing("a", 5, gap, gap, sign_flip_p_value(gaps_S), gap, gap)
        assert standing.verdict == verdict, gaps
    reaching = Bounds(1.0, -0.5, 2.0)
    assert Standing("a", 5, reaching, reaching, 0.0625, reaching, reaching).verdict == 0


def test_intervals_are_widened_for_few_seeds() -> None:
    """Tails by the definition, with t quantiles from a table; five seeds reach almost to the lowest and the highest."""
    for seeds, quantile in ((2, 12.7062), (5, 2.7764), (6, 2.5706), (31, 2.0423)):
        assert t_quantile(0.975, seeds - 1) == pytest.approx(quantile, abs=1e-4)
        widened = NormalDist().cdf(-math.sqrt(seeds / (seeds - 1)) * quantile)
        assert tail_of(seeds) == pytest.approx(widened, rel=1e-3)
    assert tail_of(5) == pytest.approx(0.000954, abs=1e-6)
    values_S = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    found = Bounds.of(seed_weights(5, 20_000, 0) @ values_S, 5)
    assert found.mean == 2.0
    assert 0.0 <= found.low <= 0.4
    assert 3.6 <= found.high <= 4.0


def test_they_hold_the_true_mean_nine_times_in_ten() -> None:
    """Normal seeds: nominally 95%, the plain percentile interval of five would be near 84%."""
    weights_RS, rng, held = seed_weights(5, 2000, 0), np.random.default_rng(0), 0
    for _ in range(400):
        found = Bounds.of(weights_RS @ rng.normal(size=5), 5)
        held += found.low < 0 < found.high
    assert 0.88 < held / 400 < 0.96


# --- plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [CompareSettings(), QUICK])
def test_every_method_of_the_package_can_be_planned(settings: CompareSettings) -> None:
    methods = load_methods(settings)
    for method in methods.values():
        run = make_run(settings, method, "race", 1e-3, seed=3)
        plan = make_plan(run.settings, devices=1)
        assert plan.rollouts_per_step == settings.rollouts_per_step
        assert plan.rollouts_per_step * plan.steps == run.budget == settings.rollouts
        assert run.settings.run.seed == 3


def test_runs_share_what_a_fair_race_shares() -> None:
    settings = CompareSettings()
    methods = load_methods(settings)
    rates = dict.fromkeys(methods, 3e-4)
    race, matched = race_runs(settings, methods, rates), race_runs(settings, methods, rates, 0.25)
    tuning = tuning_runs(settings, methods)
    assert len(race) == len(matched) == len(methods) * 5
    assert len(tuning) == len(methods) * 3 * 2
    assert not {run.settings.run.seed for run in tuning} & {run.settings.run.seed for run in race}
    assert {run.settings.data.data_seed for run in race} == {0}
    assert {run.settings.data.data_seed for run in tuning} == {1}  # neither prompts nor judges of the race
    assert len({run.settings.run.out for run in [*race, *matched, *tuning]}) == len([*race, *matched, *tuning])
    assert {run.settings.optimisation.update_norm for run in matched} == {0.25}
    for first, second in zip(race, matched, strict=True):
        assert replace(first.settings.optimisation, update_norm=0.25) == second.settings.optimisation
    assert matched[0].settings.run.out == "runs/lab/compare/matched/poise/norm0.25-lr0.0003-seed0"
    others = race_runs(settings, methods, rates, 0.3)  # another norm's runs are not taken for these
    assert not {run.settings.run.out for run in matched} & {run.settings.run.out for run in others}
    assert [run.settings.run.seed for run in race[: len(methods)]] == [0] * len(methods)  # all of a seed, then the next


def test_the_matched_arm_can_be_of_some_methods_only() -> None:
    settings = CompareSettings(matched_only=("rloo-2", "poise"))
    methods = load_methods(settings)
    assert list(matched_methods(settings, methods)) == ["poise", "rloo-2", "dapo"]  # the reference always takes part
    assert list(matched_methods(CompareSettings(), methods)) == list(methods)
    with pytest.raises(ConfigError, match=r"--matched-only names 'rlo-2', which does not race; did you mean 'rloo-2'"):
        load_methods(replace(settings, matched_only=("rlo-2",)))


WRONG = [
    ("[mine]\npoise.basline = 'none'", "unknown key 'poise.basline'"),
    ("[mine]\noptimisation.rollouts_per_prompt = 3", "groups of 3 do not fill a step"),
    (
        "[mine]\noptimisation = {learning_rate = 0.5, steps = 9}",
        "optimisation.learning_rate, optimisation.steps is",
    ),
    ("mine = 3", "'mine' is no method"),
    ("[mine", "is not valid TOML"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_a_wrong_method_is_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    only = ("dapo",) if said[0] == "'" else ("dapo", "mine")
    settings = replace(QUICK, methods=str(tmp_path / "mine.toml"), only=only)
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        race_runs(settings, load_methods(settings), {"dapo": 1.0, "mine": 1.0})


def test_methods_and_reference_must_exist() -> None:
    with pytest.raises(ConfigError, match="no method is called 'pose'; did you mean 'poise'"):
        load_methods(CompareSettings(only=("pose", "dapo")))
    with pytest.raises(ConfigError, match="the reference dapo does not race"):
        load_methods(CompareSettings(only=("poise",)))
    with pytest.raises(ConfigError, match="names a rate twice"):
        CompareSettings(learning_rates=(1e-3, 1e-3))
    with pytest.raises(ConfigError, match="no multiple of"):
        CompareSettings(rollouts=1000)
    with pytest.raises(ConfigError, match="--update-norm is a positive number, or 0 for the race's own, got -1"):
        CompareSettings(update_norm=-1.0)
    with pytest.raises(ConfigError, match=r"--update-norm 0\.3 is that of the matched arm; add --matched"):
        CompareSettings(update_norm=0.3, matched=False)
    with pytest.raises(ConfigError, match="--matched-only poise is of the matched arm; add --matched"):
        CompareSettings(matched_only=("poise",), matched=False)


def test_finished_runs_are_known_by_their_record_and_settings(tmp_path: Path) -> None:
    done = plant(tmp_path, "poise", 0, [0.0, 0.5]).run
    killed = plant(tmp_path, "poise", 1, [0.0, 0.5], how="failed").run
    assert is_finished(done)
    assert not is_finished(killed)
    assert finished_below(tmp_path) == [(100, 10.0)]
    optimisation = done.settings.optimisation
    other = replace(done, settings=replace(done.settings, poise=replace(done.settings.poise, baseline="none")))
    with pytest.raises(ConfigError, match="was made with other settings"):
        is_finished(other)
    longer = replace(done, settings=replace(done.settings, optimisation=replace(optimisation, rollout_budget=200)))
    with pytest.raises(
        ConfigError, match="is finished with a budget of 100 rollouts, not 200: compare with that budget"
    ):
        is_finished(longer)


def test_a_timed_start_reads_the_run_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the folder holds that of a start with other methods."""
    settings = CompareSettings(learning_rates=(1e-3,), out=str(tmp_path))
    methods = load_methods(settings)
    for name in ("poise", "dapo"):
        monkeypatch.setattr(compare, "run_all", lambda runs, jobs, done: [fill(run, [0.2, 0.4]) for run in runs])
        like = make_run(settings, methods[name], "race", 1e-3, 0)
        assert compare._timed(settings, like) == (2 * settings.rollouts_per_step, 10.0)


def test_what_is_finished_can_be_compared_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = CompareSettings(seeds=2, tuning_seeds=1, rollouts=512, out=str(tmp_path / "part"), resamples=50)
    with pytest.raises(ConfigError, match="nothing to compare yet"):
        compare.run(settings, finished=True)
    methods = load_methods(settings)
    for name, rate in (("poise", 6e-4), ("dapo", 1.5e-4)):
        for tried in settings.learning_rates:
            fill(make_run(settings, methods[name], TUNING, tried, 1000), [0.2, 0.6 if tried == rate else 0.3])
        for seed in (0, 1):
            fill(make_run(settings, methods[name], "race", rate, seed), [0.2, 0.4, 0.5 + (name == "poise") / 10])
    fill(make_run(settings, methods["poise"], MATCHED, 6e-4, 0, 0.5), [0.2, 0.4, 0.5])  # the reference has none yet
    assert compare.run(settings, finished=True) == 0
    said = (tmp_path / "part" / "study.json").read_text()
    assert "2 methods, 2 seeds each" in said
    assert "not told apart POISE (paper)" in said
    assert "At the edge of the grid, so perhaps not at their best: POISE (paper), DAPO" in said
    assert "every update of one norm" not in said
    assert "written to" in capsys.readouterr().out
