"""Local files of each kind, field maps, and what is kept in `info`."""

import json

import pandas as pd
import pytest
from datasets import Dataset

from poise.errors import ConfigError
from poise.tasks import load_task, parse_options, prompt_text, question_text
from poise.tasks.local import records_to_dataset

RECORDS = [{"q": f"What is {i} + 1?", "truth": float(i + 1), "topic": "sums", "level": i} for i in range(40)]


@pytest.fixture(params=["jsonl", "json", "parquet", "csv"])
def file(request, tmp_path):
    path = tmp_path / f"problems.{request.param}"
    if request.param == "jsonl":
        path.write_text("\n\n".join(map(json.dumps, RECORDS)))
    elif request.param == "json":
        path.write_text(json.dumps(RECORDS))
    elif request.param == "parquet":
        Dataset.from_list(RECORDS).to_parquet(path)
    else:
        pd.DataFrame(RECORDS).to_csv(path, index=False)
    return path


def test_every_kind_of_file_gives_the_same_rows(file):
    fields = {"prompt": "q", "answer": "truth", "domain": "topic", "held_out": 0.5}
    train = load_task(str(file), "train", **fields)
    test = load_task(str(file), "test", **fields)
    rows = {row["prompt"]: row for row in [*train, *test]}
    assert len(rows) == 40
    assert float(rows["What is 3 + 1?"]["answer"]) == 4
    assert rows["What is 3 + 1?"]["domain"] == "sums"
    assert int(json.loads(rows["What is 3 + 1?"]["info"])["level"]) == 3


def test_a_wrong_field_names_the_nearest(file):
    with pytest.raises(
        ConfigError,
        match=r"record 1 has no field 'trut'; did you mean 'truth'.*--answer-column, or --task-options answer=NAME",
    ):
        load_task(str(file), "train", prompt="q", answer="trut")


def test_a_template_of_the_users_own():
    dataset = records_to_dataset(RECORDS[:1], prompt="q", answer="truth", template="Q: {question}\nA:", keep="level")
    assert dataset[0]["prompt"] == "Q: What is 0 + 1?\nA:"
    assert json.loads(dataset[0]["info"]) == {"level": 0, "_question": "What is 0 + 1?"}
    with pytest.raises(ConfigError, match="no template is called 'dapoo'; did you mean 'dapo'"):
        records_to_dataset(RECORDS[:1], prompt="q", answer="truth", template="dapoo")


@pytest.mark.parametrize("chat", ["False", "no", 0, None])
def test_chat_is_true_or_false_and_no_text_that_looks_like_it(chat):
    with pytest.raises(ConfigError, match=f"chat is true or false, got {chat!r}"):
        records_to_dataset(RECORDS[:1], prompt="q", answer="truth", chat=chat)


def test_messages_stay_messages():
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    dataset = records_to_dataset([{"prompt": said, "answer": 4}])
    assert dataset[0]["prompt"] == said
    assert prompt_text(dataset[0]["prompt"]) == "Be brief.\n\n2 + 2?"
    with pytest.raises(ConfigError, match="holds messages"):
        records_to_dataset([{"prompt": said, "answer": 4}], template="boxed")


def test_a_prompt_column_alone_is_enough():
    assert records_to_dataset([{"prompt": "hello"}])[0] == {
        "prompt": "hello",
        "answer": "",
        "domain": "default",
        "info": "{}",
    }


def test_a_test_file_of_its_own(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "train", "answer": "1"}')
    (tmp_path / "b.jsonl").write_text('{"prompt": "test", "answer": "2"}')
    options = {"test_file": str(tmp_path / "b.jsonl")}
    assert load_task(str(tmp_path / "a.jsonl"), "train", **options)["prompt"][0] == "train"
    assert load_task(str(tmp_path / "a.jsonl"), "test", **options)["prompt"][0] == "test"


def test_a_wrong_option_names_the_nearest_of_the_field_map_or_of_the_file(file):
    for wrong, meant in (("promt", "prompt"), ("test_fil", "test_file"), ("sistem", "system")):
        with pytest.raises(ConfigError, match=f"no option '{wrong}'; did you mean '{meant}'"):
            load_task(str(file), "train", **{wrong: "q"})


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ConfigError, match=r"empty\.jsonl holds no record; a task needs at least one"):
        load_task(str(tmp_path / "empty.jsonl"), "train")


def test_broken_json_names_the_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a\u2028b"}\n{"prompt": \n')
    with pytest.raises(ConfigError, match=r"line 2 of .* is not JSON"):
        load_task(str(path))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_mark_of_byte_order_is_no_part_of_a_file(name, tmp_path):
    """Spreadsheets and some editors begin every file with one."""
    text = {"a.csv": "prompt,answer\n1+1=,2\n", "a.jsonl": '{"prompt": "1+1=", "answer": 2}\n'}
    (tmp_path / name).write_text(text.get(name, '[{"prompt": "1+1=", "answer": 2}]'), encoding="utf-8-sig")
    rows = load_task(str(tmp_path / name), "test", test_file=str(tmp_path / name))
    assert (rows[0]["prompt"], rows[0]["answer"]) == ("1+1=", "2")


def test_a_comma_too_many_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,answer\n1+1=,2\nWhat, then, is 2?,2\n")
    with pytest.raises(
        ConfigError, match=r"record 2 of .* has more values than the first line has names: \[' is 2\?', '2'\]"
    ):
        load_task(str(tmp_path / "a.csv"))


def test_what_is_missing_is_no_text_that_says_so():
    given = [{"prompt": "a", "answer": None, "domain": None}, {"prompt": "b", "answer": float("nan"), "domain": ""}]
    rows = records_to_dataset([*given, {"prompt": "c", "answer": 0, "domain": 3}])
    assert rows["answer"][:] == ["", "", "0"]
    assert rows["domain"][:] == ["default", "default", "3"]


def test_what_a_message_says_is_text():
    parts = [{"role": "user", "content": [{"type": "text", "text": "1+1="}]}]
    with pytest.raises(ConfigError, match="a list of messages with 'role' and 'content', both text"):
        records_to_dataset([{"prompt": parts}])


def test_what_is_held_out_does_not_depend_on_words_around_the_problem(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"What is {i} + 1?", "answer": i + 1}) for i in range(200)))
    around = ({}, {"chat": True, "system": "Be brief."}, {"template": "boxed"})
    answers = [load_task(str(path), "test", **options)["answer"][:] for options in around]
    assert answers[0] == answers[1] == answers[2]


def test_a_users_own_column_is_no_problem(tmp_path):
    """Neither one called `question`, as many files have it, nor one of our own name."""
    path = tmp_path / "a.jsonl"
    records = [{"prompt": f"What is {i} + 1?", "question": "How many?", "_question": "Why?"} for i in range(50)]
    path.write_text("\n".join(map(json.dumps, records)))
    train, test = (load_task(str(path), split) for split in ("train", "test"))
    assert len(train) + len(test) == 50
    assert json.loads(train[0]["info"]) == {"question": "How many?"}
    assert question_text(train[0]) == train[0]["prompt"]


def test_a_number_may_be_a_columns_name(tmp_path):
    (tmp_path / "a.csv").write_text("0,1,2\n1+1=,2,sums\n")
    options = parse_options({"prompt": "0", "answer": "1", "domain": "2", "test_file": str(tmp_path / "a.csv")})
    row = load_task(str(tmp_path / "a.csv"), "test", **options)[0]
    assert (row["prompt"], row["answer"], row["domain"]) == ("1+1=", "2", "sums")
    for option, said in (("template", "no template is called '3'"), ("test_file", "there is no file 3")):
        with pytest.raises(ConfigError, match=said):
            load_task(str(tmp_path / "a.csv"), "test", **{**options, option: 3})


def test_a_domain_that_no_record_has(file):
    with pytest.raises(ConfigError, match="no record has the field 'topc' for its domain; did you mean 'topic'"):
        load_task(str(file), "train", prompt="q", answer="truth", domain="topc")


def test_words_around_messages_are_refused():
    said = [{"role": "user", "content": "2 + 2?"}]
    with pytest.raises(ConfigError, match="holds messages, so no template or system message"):
        records_to_dataset([{"prompt": said}], system="Be brief.")


def test_a_seed_below_zero(file):
    with pytest.raises(ConfigError, match="the seed that draws rows must be at least 0, got -3"):
        load_task(str(file), "train", 5, seed=-3, prompt="q", answer="truth")


def test_two_columns_of_one_name(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,answer,prompt\na,1,b\n")
    with pytest.raises(ConfigError, match=r"a\.csv has two columns 'prompt'"):
        load_task(str(tmp_path / "a.csv"))


def test_what_the_columns_do_not_say_stays_in_info():
    """Under its own name: a reward may ask for the column `truth`, and a list or number is text in `answer`."""
    mapped = records_to_dataset(RECORDS[:1], prompt="q", answer="truth")
    assert mapped["answer"][0] == "1"
    assert json.loads(mapped[0]["info"]) == {"q": "What is 0 + 1?", "truth": 1.0, "topic": "sums", "level": 0}
    rows = records_to_dataset([{"prompt": "a", "answer": ["1", "2"]}, {"prompt": "b", "answer": "1"}])
    assert rows["answer"][:] == ['["1", "2"]', "1"]
    assert [json.loads(info) for info in rows["info"]] == [{"answer": ["1", "2"]}, {}]


def test_dropped_repeats_are_counted(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"What is {i % 20} + 1?"}) for i in range(60)))
    assert len(load_task(str(path), "train", held_out=0.2)) + len(load_task(str(path), "test", held_out=0.2)) == 20
    assert caplog.messages == [f"40 of the 60 problems in {path} repeat another, and are left out"]
