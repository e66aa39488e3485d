"""The whole evaluation: estimates from verdicts, failures apart, resuming, JSON, comparison."""

import copy
import json
import math

import pytest

from poise.errors import ConfigError, StateMismatchError
from poise.eval import Completion, Evaluation, Sampling, compare, evaluate, evaluate_with
from poise.rewards import Verdict
from poise.tasks.rows import row, to_dataset

DATASET = to_dataset([row(f"{i}+{i}=", str(2 * i), domain="even" if i % 2 == 0 else "odd") for i in range(10)])


def scripted(*texts_P, truncated=False):
    """A sampler that says what it is told."""

    def sampler(prompts, sampling, done):
        for index in range(len(prompts)):
            if index not in done:
                yield index, [Completion(text, 3, truncated) for text in texts_P[index]]

    return sampler


def verify(completion, example):
    if completion == "broken":
        return Verdict.failed("the sandbox is gone")
    if completion == "crash":
        raise RuntimeError("boom")
    return Verdict(float(completion == example["answer"]), answer=completion)


def test_estimates_from_known_verdicts():
    dataset = DATASET.select([1, 2])
    found = evaluate_with(scripted(["2", "2", "3", "3"], ["4", "0", "1", "broken"]), dataset, verify, Sampling(k=4))
    assert [result.scores for result in found.results] == [(1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, None)]
    assert found.average.mean == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found.pass_at[1].mean == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found.pass_at[2].mean == pytest.approx((5 / 6 + 2 / 3) / 2)
    assert found.pass_at[4].mean == 1.0
    assert found.pass_at[4].prompts == 1  # the other prompt has only three verified samples
    assert found.majority.mean == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert {domain: estimate.mean for domain, estimate in found.domains.items()} == {
        "odd": 0.5,
        "even": pytest.approx(1 / 3),
    }
    assert (found.failed, found.failures, found.samples) == (1, {"the sandbox is gone": 1}, 8)


def test_a_domain_whose_verifier_reads_no_answers_has_no_vote():
    def judge(completion, example):
        right = float(completion == example["answer"])
        return Verdict(right, answer=completion) if example["domain"] == "odd" else Verdict(right)

    dataset = DATASET.select([1, 2])
    found = evaluate_with(scripted(["2", "3", "2"], ["3", "3", "3"]), dataset, judge, Sampling(k=3))
    assert [(result.domain, result.scores) for result in found.results] == [
        ("odd", (1.0, 0.0, 1.0)),
        ("even", (0.0, 0.0, 0.0)),
    ]
    assert (found.majority.mean, found.majority.prompts) == (0.5, 2)  # nothing right there, whatever the votes
    found = evaluate_with(scripted(["2", "3", "2"], ["4", "3", "3"]), dataset, judge, Sampling(k=3))
    assert (found.majority.mean, found.majority.prompts) == (1.0, 1)
    found = evaluate_with(scripted(["4", "3", "3"]), DATASET.select([2]), judge, Sampling(k=3))
    assert found.majority is None


def test_failures_are_never_zeros():
    found = evaluate_with(scripted(["crash"], ["broken"], ["4"]), DATASET.select([0, 1, 2]), verify, Sampling(k=1))
    assert found.average.mean == 1.0
    assert found.average.prompts == 1
    assert found.failures == {"RuntimeError: boom": 1, "the sandbox is gone": 1}


def test_all_failed_is_no_number_and_survives_json():
    found = evaluate_with(scripted(["broken"], ["broken"]), DATASET.select([0, 1]), verify, Sampling(k=1))
    assert math.isnan(found.average.mean)
    assert math.isnan(Evaluation.from_json(found.to_json()).average.mean)
    json.loads(found.to_json(), parse_constant=pytest.fail)


def test_json_round_trip(tmp_path):
    found = evaluate_with(scripted(*[["0", "2"]] * 10), DATASET, verify, Sampling(k=2), settings={"model": "m"})
    found.to_json(tmp_path / "a" / "eval.json")
    back = Evaluation.from_json(tmp_path / "a" / "eval.json")
    assert back.results == found.results
    assert back.to_json() == found.to_json()
    assert back.settings["model"] == "m"
    with pytest.raises(ConfigError, match="there is no evaluation at"):
        Evaluation.from_json(tmp_path / "none.json")
    (tmp_path / "b.json").write_text('{"schema": 99}')
    with pytest.raises(ConfigError, match="not an evaluation of schema 1"):
        Evaluation.from_json(tmp_path / "b.json")


def test_a_real_model_end_to_end_and_in_the_middle_of_training(model, tokenizer):
    found = evaluate(model, tokenizer, DATASET, verify, k=4, max_new_tokens=6, temperature=1.0, resamples=100)
    assert found.samples == 40
    assert found.settings["temperature"] == 1.0
    assert 0 <= found.truncated <= 1
    assert set(found.pass_at) == {1, 2, 4}
    assert found.average.mean == pytest.approx(found.pass_at[1].mean)


def test_an_interrupted_run_goes_on_and_gives_the_same_result(model, tokenizer, tmp_path):
    settings = {"k": 2, "max_new_tokens": 6, "temperature": 1.0, "batch_size": 4, "resamples": 50}
    whole = evaluate(model, tokenizer, DATASET, verify, **settings)
    path = tmp_path / "samples.jsonl"
    sampled = []

    def stop_midway(finished, total):
        sampled.append(finished)
        if finished == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, DATASET, verify, **settings, samples_path=path, on_prompt=stop_midway)
    with path.open("a") as file:
        file.write('{"index": 9, "completi')  # killed in the middle of a line
    counted = []
    resumed = evaluate(
        model, tokenizer, DATASET, verify, **settings, samples_path=path, on_prompt=lambda *n: counted.append(n)
    )
    assert resumed.results == whole.results
    assert counted == [(6, 10), (7, 10), (8, 10), (9, 10), (10, 10)]
    again = evaluate(model, tokenizer, DATASET, verify, **settings, samples_path=path, on_prompt=pytest.fail)
    assert again.results == whole.results


def test_samples_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "samples.jsonl"
    dataset = DATASET.select([0])
    evaluate_with(scripted(["0"]), dataset, verify, Sampling(k=1, seed=0), samples_path=path)
    with pytest.raises(StateMismatchError, match="seed was 0 and is 1"):
        evaluate_with(scripted(["0"]), dataset, verify, Sampling(k=1, seed=1), samples_path=path)
    with pytest.raises(StateMismatchError, match="prompts was 1 and is 2"):
        evaluate_with(scripted(["0"], ["0"]), DATASET.select([0, 1]), verify, Sampling(k=1), samples_path=path)


def test_samples_of_another_precision_are_not_mixed(model, tokenizer, tmp_path):
    """`--dtype auto` is another type on another machine."""
    settings = {"max_new_tokens": 2, "k": 1, "settings": {"dtype": "auto"}, "samples_path": tmp_path / "samples.jsonl"}
    evaluate(model, tokenizer, DATASET, verify, **settings)
    with pytest.raises(StateMismatchError, match="dtype was 'float32' and is 'bfloat16'"):
        evaluate(copy.deepcopy(model).bfloat16(), tokenizer, DATASET, verify, **settings)


def test_comparison_pairs_prompts_and_finds_a_small_steady_gain():
    hard_to_easy = [["0"] * (10 - i) + [str(2 * i)] * i for i in range(10)]
    better = [["x"] * (9 - i) + [str(2 * i)] * (i + 1) for i in range(10)]
    first = evaluate_with(scripted(*hard_to_easy), DATASET, verify, Sampling(k=10))
    second = evaluate_with(scripted(*better), DATASET, verify, Sampling(k=10))
    found = compare(first, second)
    # Prompt 0's truth is "0", so the first run gets it right throughout.
    assert found.difference.mean == pytest.approx((9 * 0.1 - 0.9) / 10)
    without_zero = list(range(1, 10))
    first, second = (
        evaluate_with(scripted(*[said[i] for i in without_zero]), DATASET.select(without_zero), verify, Sampling(k=10))
        for said in (hard_to_easy, better)
    )
    found = compare(first, second)
    assert found.difference.mean == pytest.approx(0.1)
    assert (found.difference.low, found.difference.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert found.p_value == pytest.approx(2 / 2**9)
    assert first.average.high > second.average.low  # unpaired intervals overlap
    assert found.second - found.first == pytest.approx(0.1)


def test_comparison_counts_what_is_not_shared():
    first = evaluate_with(scripted(["0"], ["0"], ["broken"]), DATASET.select([0, 1, 2]), verify, Sampling(k=1))
    second = evaluate_with(scripted(["0"], ["0"]), DATASET.select([1, 3]), verify, Sampling(k=1))
    found = compare(first, second)
    assert (found.prompts, found.only_first, found.only_second) == (1, 1, 1)
    other = evaluate_with(scripted(["0"]), DATASET.select([9]), verify, Sampling(k=1))
    with pytest.raises(ConfigError, match="share no prompt"):
        compare(first, other)


def test_the_same_prompt_twice_is_two_prompts():
    found = evaluate_with(scripted(["0"], ["1"]), DATASET.select([0, 0]), verify, Sampling(k=1))
    assert len({result.key for result in found.results}) == 2
    assert compare(found, found).prompts == 2
