"""Named tasks on small files of the published schemas, and on the real files where they lie beside the repository."""

import json
from pathlib import Path

import pytest

from poise.errors import ConfigError
from poise.tasks import COLUMNS, load_task, names, parse_options, prompt_text, question_text, reward_of
from poise.tasks.select import contamination

REAL = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real problem sets are not at {REAL}")


def write(folder: Path, name: str, records: list[dict]) -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def test_gsm8k_takes_the_number_after_the_hashes(tmp_path):
    write(tmp_path, "gsm8k_train.jsonl", [{"question": "How many?", "answer": "1000 + 24 = 1024\n#### 1,024"}])
    dataset = load_task("gsm8k", "train", path=str(tmp_path))
    assert dataset.column_names == list(COLUMNS)
    assert dataset[0]["answer"] == "1024"
    assert dataset[0]["domain"] == "math"
    assert question_text(dataset[0]) == "How many?"
    assert dataset[0]["prompt"] == [
        {
            "role": "user",
            "content": "Solve the following math problem step by step. The last line of your response should be of the "
            "form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\nHow many?\n\n"
            'Remember to put your answer on its own line after "Answer:".',
        }
    ]


def test_svamp_joins_body_and_question(tmp_path):
    write(tmp_path, "svamp.jsonl", [{"Body": "Ed has 3 hats", "Question": "How many?", "Answer": 3.0, "Type": "Sum"}])
    dataset = load_task("svamp", "test", path=str(tmp_path), held_out=0.999999, template="plain", chat=False)
    assert dataset[0]["prompt"] == "Ed has 3 hats. How many?"
    assert dataset[0]["answer"] == "3"
    assert json.loads(dataset[0]["info"])["type"] == "Sum"


def test_competition_sets_are_for_evaluation_only(tmp_path):
    path = write(
        tmp_path, "x.jsonl", [{"problem": "Find $x$.", "answer": 27.0}, {"question": "Find y.", "answer": "7"}]
    )
    dataset = load_task("amc23", "test", path=str(path), template="boxed")
    assert list(dataset["answer"]) == ["27", "7"]
    assert prompt_text(dataset[0]["prompt"]).endswith(r"within \boxed{}.")
    with pytest.raises(ConfigError, match="evaluation only"):
        load_task("amc23", "train", path=str(path))


def test_the_hash_split_is_disjoint_and_does_not_depend_on_the_other_rows(tmp_path):
    records = [
        {"input": f"Ann has {i} dogs and buys {i * 7} cats. How many?", "target": float(8 * i)} for i in range(400)
    ]
    whole = write(tmp_path, "mawps_a.jsonl", records)
    train, test = (load_task("mawps", split, path=str(whole), held_out=0.25) for split in ("train", "test"))
    assert len(train) + len(test) == 400
    assert 70 <= len(test) <= 130  # 100 expected, standard deviation 8.7
    assert not set(map(question_text, train)) & set(map(question_text, test))
    part = write(tmp_path, "part.jsonl", records[:50])
    test_of_part = set(map(question_text, load_task("mawps", "test", path=str(part), held_out=0.25)))
    assert test_of_part <= set(map(question_text, test))


def test_duplicates_are_dropped_before_the_split(tmp_path):
    twice = [{"input": "Ann has 2 dogs .", "target": 2.0}, {"input": "ann has 2 dogs.", "target": 2.0}]
    path = write(tmp_path, "mawps.jsonl", twice)
    assert len(load_task("mawps", "train", path=str(path), held_out=1e-9)) == 1


def test_size_and_seed_draw_the_same_rows(tmp_path):
    path = write(tmp_path, "x.jsonl", [{"problem": f"Problem {i}", "answer": i} for i in range(50)])
    first, again, other = (load_task("aime24", "test", 10, seed, path=str(path)) for seed in (1, 1, 2))
    assert list(first["answer"]) == list(again["answer"]) != list(other["answer"])
    with pytest.raises(ConfigError, match="asked for 51 rows, and the task has 50"):
        load_task("aime24", "test", 51, path=str(path))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: load_task("gsm8kk"), "did you mean 'gsm8k'"),
        (lambda: load_task("gsm8k", "validation"), "splits 'train' and 'test', got 'validation'"),
        (lambda: load_task("gsm8k", size=0), "size must be at least 1, got 0"),
        (lambda: load_task("gsm8k", pth="/x"), "no option 'pth'; did you mean 'path'"),
        (lambda: load_task("gsm8k", path="/no/such/place"), "neither a file nor a folder"),
        (lambda: load_task("mawps"), "no known home on the hub"),
        (lambda: load_task("no_such.jsonl"), "there is no file no_such.jsonl"),
    ],
)
def test_wrong_input_is_one_clear_sentence(call, said):
    with pytest.raises(ConfigError, match=said):
        call()


def test_a_file_of_another_schema_names_its_fields(tmp_path):
    path = write(tmp_path, "x.jsonl", [{"body": "?", "target": 1}])
    with pytest.raises(ConfigError, match=r"record 1 does not have the schema of 'gsm8k'.*body, target"):
        load_task("gsm8k", "train", path=str(path))


def test_procedural_tasks_are_reachable_by_name():
    assert {"tiny", "chain_sum", "gsm8k"} <= set(names())
    dataset = load_task("reasoning-gym:chain_sum", "test", size=3)
    assert dataset.column_names == list(COLUMNS)
    assert reward_of("reasoning-gym:leg_counting") == reward_of("tiny")


def test_options_from_the_command_line():
    assert parse_options({"chat": "true", "path": "a/b", "held_out": "0.2"}) == {
        "chat": True,
        "path": "a/b",
        "held_out": 0.2,
    }


@real
@pytest.mark.parametrize(
    ("name", "split", "rows", "first_answer"),
    [
        ("gsm8k", "train", 7473, "72"),
        ("gsm8k", "test", 1319, "18"),
        ("amc23", "test", 40, "27"),
        ("aime24", "test", 30, "204"),
    ],
)
def test_real_files(name, split, rows, first_answer):
    dataset = load_task(name, split, path=str(REAL))
    assert len(dataset) == rows
    assert dataset[0]["answer"] == first_answer


@real
@pytest.mark.parametrize("name", ["svamp", "mawps", "mawps-singleop"])
def test_real_single_files_are_split(name):
    train, test = (load_task(name, split, path=str(REAL)) for split in ("train", "test"))
    assert 0.05 < len(test) / (len(train) + len(test)) < 0.16
    assert all(answer.replace(".", "").replace("-", "").isdigit() for answer in train["answer"])


@real
@pytest.mark.parametrize(("name", "rows"), [("svamp", (784, 97)), ("mawps", (1550, 196))])
def test_no_near_copy_of_a_held_out_problem_is_trained_on(name, rows):
    train, test = (load_task(name, split, path=str(REAL)) for split in ("train", "test"))
    assert (len(train), len(test)) == rows
    assert not contamination(train, [test]).rows


def test_svamps_published_splits_are_not_mixed(tmp_path):
    for split in ("train", "test"):
        rows = [{"Body": f"{split} {i}.", "Question": "How many?", "Answer": i} for i in range(9)]
        write(tmp_path, f"svamp_{split}.jsonl", rows)
    for split in ("train", "test"):
        dataset = load_task("svamp", split, path=str(tmp_path))
        assert [question_text(row).split()[0] for row in dataset] == [split] * 9
    (tmp_path / "svamp_test.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"holds no file of 'svamp' .looked for svamp_test"):
        load_task("svamp", "test", path=str(tmp_path))


def test_a_file_with_the_name_of_the_test_split_is_all_of_it(tmp_path):
    records = [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(50)]
    test, train = (write(tmp_path, f"gsm8k_{split}.jsonl", records) for split in ("test", "train"))
    assert len(load_task("gsm8k", "test", path=str(test))) == 50
    with pytest.raises(ConfigError, match="is by its name the test split of 'gsm8k'"):
        load_task("gsm8k", "train", path=str(test))
    assert sum(len(load_task("gsm8k", split, path=str(train))) for split in ("train", "test")) == 50
