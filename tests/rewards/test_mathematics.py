r"""The math reward: equivalences, wrong answers, stuffed answers, monsters, hung checks, threads."""

import os
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.rewards import resolve
from poise.rewards.math_text import canonical, plain_number
from poise.rewards.mathematics import MathVerifier, quickly_equal
from poise.rewards.workers import Worker, WorkerPool, WorkerTimeoutError

pytest.importorskip("math_verify", reason="the math reward needs math-verify (poise-rl[math])")


@pytest.fixture(scope="module")
def verify():
    verifier = MathVerifier(seconds=20, workers=1)
    yield verifier
    verifier.pool.close()


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ("1234", "1,234"),
        ("1234567", r"1{,}234\,567"),
        ("1000", "1 000"),
        ("18", "18 dollars"),
        ("18", r"\$18"),
        ("18", r"18\text{ cm}"),
        ("45", r"45^\circ"),
        ("45", "45°"),
        ("073", r"\textbf{(073)}"),
        ("73", r"\mathbf{073}"),
        ("-5", "−5"),
        ("5", "５"),
        ("1/2", "0.5"),
        (r"\frac{1}{2}", r"\dfrac12"),
        ("0.5", r"50\%"),
        (r"50\%", "1/2"),
        ("1500", r"1.5\times 10^3"),
        ("1500", "1.5e3"),
        ("-4", "x = -4"),
        ("1024", "2^{10}"),
        ("3/2", r"1\frac12"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2"),
        ("(1, 2)", "(1,2)"),
        ("(1,2)", "1, 2"),
        (r"\{1, 2, 3\}", r"\{3, 2, 1\}"),
        ("2, -2", r"\pm 2"),
        (r"(-\infty, 3]", "(-∞, 3]"),
        (r"[1,2)\cup(3,4]", r"(3,4]\cup[1,2)"),
        ("x^2+1", "1 + x**2"),
        ("y=2x+1", "2x+1"),
        (r"\text{east}", "East"),
        ("B", r"\textbf{(B)}\ 12"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"\pi", "π"),
        ("10 cm", r"10\text{ centimeters}"),
        ("10 cm", "10"),
        ("5", r"5\text{ more}"),
        ("5", r"5\text{ cm}^2"),
        ("B", r"\text{(B) because A is empty}"),
        ("C", r"\textbf{(C)}\ 12, \text{a square}"),
        ("18", "18 miles per hour"),
        ("18", "18 km/h"),
        ("18", r"18\text{ m/s}^2"),
        ("18", r"18~\mathrm{cm}^{2}"),
        ("18", "18 cm²"),
        ("18", "18€"),
        ("18", "£18"),
        ("18", "USD 18"),
        ("18", "18 (dollars)"),
        ("18", r"\text{18 dollars}"),
        ("18", "$18$ eggs per day"),
        ("18", r"\(18\) eggs"),
        ("18", "**18** eggs"),
        ("18", "`18`"),
        ("18", "x = 18 m"),
        ("18", "9 * 2 = 18"),
        ("18", r"\gcd(36, 54) = 18"),
        ("113", "m+n = 100 + 13 = 113"),
        ("14", r"14\degree"),
        ("1000", r"1\text{,}000"),
        ("-5", r"-\$5"),
        ("13/4", "3 1/4"),
        ("-3.5", r"-3\ \tfrac{1}{2}\text{ cups}"),
        ("3 1/2", r"\frac72"),
        ("3 1/2", "3.5"),
        ("3 1/2", r"3\frac12"),
        (r"\frac13", r"0.\overline{3}"),
        (r"0.1\overline{6}", "1/6"),
        (r"2\sqrt{3}", "2√3"),
        ("17 cm", r"17.0\text{ centimeters}"),
        ("53/3", r"\frac{53}{3} \approx 17.67\text{ cm}"),
        (r"2\sqrt{3}", r"x = 2\sqrt{3} \approx 3.46"),
        ("C", "option C"),
        ("C", "c"),
        (r"\text{(C)}", r"\textbf{(C)}\ 12"),
        (r"\text{(C)}", "C. 12"),
        ("A", "A. A triangle"),
        ("A", "A. Vitamin B12"),
        ("48+24 = <<48+24=72>>72 clips.\n#### 72", "72"),
        ("# 1\n#### 2\n#### 1,024", "1024"),
        (r"#### \frac{1}{2}", "0.5"),
        (r"12\pi", r"x = 12\pi"),
        (r"12\pi", r"12\pi\text{ cm}"),
        (r"12\pi", r"\text{Area} = \pi r^2 = 2\pi \cdot 6 = 12\pi \approx 38"),
        (r"12\pi", r"2\pi(6) = 12\pi"),
        (r"\frac{\pi}{3}", r"\theta = 60^\circ = \frac{\pi}{3}"),
        (r"10\sqrt3", r"x = 10\sqrt{3} \approx 17.32\text{ cm}"),
        ("18", r"6\sqrt{9} \approx 18.0"),
        ("x+1", r"f(x) = \frac{x^2-1}{x-1} = x+1"),
        ("x+1", r"x+1\text{ dollars}"),
        ("1,2", r"x=1\text{ or }x=2"),
        ("1,2", r"1 \text{ and } 2\text{ cm}"),
        ("n^2", r"1+3+5+\ldots+(2n-1) = n^2"),
        ("3i+2j", r"3\mathbf{i}+2\mathbf{j}"),
        (r"10:30 \text{ a.m.}", "10:30 a.m."),
        (r"\text{10:30 a.m.}", "10:30 AM"),
        ("2:30 PM", "2:30 pm"),
        (r"10\text{ a.m.}", "10:00 am"),
        ("10:30", "10:30 a.m."),
        (r"\text{June 20}", "June 20"),
        (r"\text{May 1}", "May 1"),
        (r"\text{A and B}", "A and B"),
        (r"\text{I and II}", "I and II"),
        (r"\text{A5}", "A5"),
        ("B and C", r"\text{B and C}"),
        (r"6.02\times10^{23}", "6.02e23"),
        (r"6.63\times10^{-34}", "6.63e-34"),
        ("602000000000000000000000", r"6.02\times10^{23}"),
        (r"1.6\times10^{-19}", r"1.60 \cdot 10^{-19}\text{ C}"),
        ("18 eggs", "18"),
        ("18 girls", "18"),
        ("18 eggs", r"18\text{ eggs}"),
        ("18 eggs", "n = 18 blue eggs"),
        ("€18", "18"),
        ("£18", "18"),
        ("18€", "18"),
        ("USD 18", "18"),
        ("18 USD", "18 dollars"),
        ("15 cm^2", "15"),
        ("15 cm^2", r"15\text{ cm}^2"),
        (r"15\text{ cm}^2", "15 cm^2"),
        ("18", r"18\text{ N}"),
        ("18", r"18\text{ J}"),
        ("18", r"18\mathrm{~V}"),
        ("18", r"18\text{ per hour}"),
        ("18", r"\$18 per day"),
        ("18", "18/hour"),
        ("18", "18 per person"),
        ("18", r"\$18\text{ per day}"),
        (r"2125\%", r"2,125\%"),
        ("2125", r"2,125\%"),
        (r"1000\pi", r"1{,}000\pi"),
        (r"1000\pi", r"1,000\pi"),
        (r"\frac{1{,}000}{3}", r"\frac{1000}{3}"),
        (r"x = 1{,}000", "1000"),
        ("2516_8", "2516_{8}"),
    ],
)
def test_equal(verify, truth, said):
    assert verify(rf"So we get \boxed{{{said}}}.", {"answer": truth}).score == 1.0


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ("48+24 = <<48+24=72>>72 clips.\n#### 72", "24"),
        ("10 cm", r"10\text{ m}"),
        (r"5\text{ hours}", "5 minutes"),
        ("A", "A, B"),
        ("A", r"\text{(A) or (B)}"),
        ("A", r"\textbf{(A)} \text{ and } \textbf{(C)}"),
        ("1234", "1235"),
        ("5", "4"),
        ("18", "18 million"),
        ("18", "not 18"),
        ("1/3", "0.333"),
        ("(1,2)", "(2,1)"),
        ("[0,1)", "(0,1)"),
        ("3", "3, 4"),
        ("3, 4", "3"),
        ("12", "1,2"),
        ("12", "1 2"),
        ("5", "2 3"),
        ("east", "seat"),
        ("B", "A"),
        ("B", "A or B"),
        (r"\pi", "3.14"),
        ("5", "٥"),  # Arabic-Indic five
        ("x", "х"),  # a Cyrillic letter
        ("52", "5²"),
        ("10", "l0"),
        ("2x+1", "2x-1"),
        ("7", ""),
        ("1", "3 1/4"),
        ("1", "1 1/2"),
        ("3", "3 5/4"),
        ("1/3", "0.3"),
        ("18", r"18 + m"),
        ("18", r"18\text{ thousand}"),
        ("18", r"18\text{ hundred}"),
        ("18", r"18\text{ dozen}"),
        ("18", r"18\text{ is wrong}"),
        ("18", "18 per cent"),
        ("18", "18_7"),
        ("7", r"7\text{ minus one}"),
        ("7", r"7\text{ tenths}"),
        ("7", "7 millions"),
        ("7", "7 lakh"),
        ("7", "7x"),
        ("1", r"1\text{ million}"),
        ("17", r"17\text{ cm}, 18\text{ cm}, 19\text{ cm}"),
        ("17 cm", r"17\text{ cm}, 18\text{ cm}"),
        ("17", r"17\text{ cm}18\text{ cm}"),
        ("17", r"17\approx18"),
        ("18", r"x=17\approx18"),
        ("17", r"17 \approx 17.9"),
        ("17.9", r"17 \approx 17.9"),
        ("18", r"19 \ne 18 = 18"),
        ("19", r"17\equiv18\equiv19"),
        ("18", r"x=17\ y=18"),
        ("18", "n=17, m=18"),
        ("18", "x=17 or x=18"),
        ("A", "A B C D"),
        ("A", "A. B. C. D."),
        ("A", "A or b"),
        ("A", "A is wrong, it is B"),
        ("A", "A. No, B"),
        ("A", "A is not the answer"),
        ("A", r"\text{A, but maybe } B"),
        ("A", "A, I"),
        ("A", "A OR b"),
        ("A", "A. Wrong!"),
        ("A", "a = 3"),
        (r"\text{(A)}", r"\text{A or B}"),
        (r"12\pi", r"12\pi\text{ thousand}"),
        (r"12\pi", r"12\pi\text{ million}"),
        (r"12\pi", r"12\pi\mathrm{ squared}"),
        (r"12\pi", r"12\pi\text{ or more}"),
        (r"12\pi", r"12\pi\text{ is wrong}"),
        (r"12\pi", r"13\pi = 12\pi"),
        (r"12\pi", "1=2=3=12\\pi"),
        (r"\sqrt{2}", r"\sqrt{2}\text{maybe}\sqrt{3}"),
        (r"\sqrt{2}", r"\sqrt{2}\textbf{ or }\sqrt{3}"),
        (r"\sqrt{2}", r"\sqrt{2}\mbox{ or }\sqrt{3}"),
        (r"\sqrt{2}", r"\sqrt{2}\text{ not }\sqrt{3}"),
        (r"\sqrt{2}", r"5=\sqrt{2}"),
        (r"10\sqrt3", r"10\sqrt{3} \approx 99"),
        (r"10\sqrt3", r"10\sqrt{3} \approx 17.33\text{ cm}"),
        ("18", r"6\sqrt{9} \approx 99"),
        ("2^{10}", r"2^{10}\text{ million}"),
        (r"10\sqrt{3}\text{ cm}", r"10\sqrt{3}\text{ thousand m}"),
        ("x+1", "x+2=x+1"),
        ("x+1", r"x+1\text{ thousand}"),
        ("y=x+1", "y=x+2=x+1"),
        ("1,2", r"1,2\text{ thousand}"),
        ("1,2", r"1,2,\ldots"),
        ("(1,2)", r"(1,2)\text{ or }\frac{1}{3}"),
        (r"3\mathbf{i}+2\mathbf{j}", r"3\mathbf{i}-7\mathbf{j}"),
        (r"10:30 \text{ a.m.}", r"10:30 \text{ p.m.}"),
        (r"10\text{ a.m.}", r"10\text{ p.m.}"),
        ("10:30 a.m.", "5:15 a.m."),
        (r"\text{June 20}", "June 21"),
        (r"1.6\times10^{-19}", r"3.2\times10^{-19}"),
        (r"9.1\times10^{-31}", r"9.2\times10^{-31}"),
        ("0.0000014", "0.0000012"),
        (r"\frac{1}{3000000}", "0.0000004"),
        ("18 eggs", "19"),
        ("18 girls", "18 boys"),
        ("15 cm^2", r"15\text{ m}^2"),
        ("5 km north", "5 km south"),
        ("18", r"18\text{ per mille}"),
        ("18", "18/x"),
        ("2516_8", "2516_9"),
        ("42_5", "42_7"),
        ("2516_8", "2516_{10}"),
    ],
)
def test_unequal(verify, truth, said):
    assert verify(rf"So we get \boxed{{{said}}}.", {"answer": truth}).score == 0.0


def test_a_worked_solution_that_states_nothing_is_no_ground_truth(verify):
    assert verify("Answer: 72", {"answer": "48 + 24 = 72\n####"}).failure == "the example has no ground truth"


@pytest.mark.parametrize(
    "completion",
    [
        "The answer is 7.",
        r"\boxed{" + ", ".join(map(str, range(20))) + "}",
        " ".join(rf"\boxed{{{i}}}" for i in range(20)),
        "\n".join(f"Answer: {i}" for i in range(20)),
        r"\boxed{7} or \boxed{8}",
        r"\boxed{7 or 8}",
        r"\boxed{7}, but also \boxed{8}",
        r"\boxed{3+4}",
        r"\boxed{14 \div 2}",
        r"\boxed{\sum_{i=1}^{7} 1}",
        r"\boxed{(7)(1)}",
        r"\boxed{x}" + " where x is the answer",
        r"\boxed{\text{the number 7, or 8}}",
        "Answer: any of 1 2 3 4 5 6 7 8 9",
        "#### 7 8",
        r"\boxed{7\newcommand{\x}{8}}",
        r"\boxed{\{n : n \in \mathbb{Z}\}}",
        r"\boxed{7 \text{ (or 8)}}",
        r"\boxed{7 \text{ or more}}",
        r"\boxed{\text{at least } 7}",
        r"\boxed{8 = 7}",
        r"\boxed{x = 8 = 7}",
        r"\boxed{\lceil 6.5 \rceil}",
        r"\boxed{\boxed{7}, 8}",
        r"\boxed{8, \boxed{7}}",
        "\\boxed{8}\n\n(alternatively: \\boxed{7})",
        r"either \boxed{8}, or else it could be \boxed{7}",
    ],
)
def test_stuffed_hedged_and_unworked_answers_lose(verify, completion):
    assert verify(completion, {"answer": "7"}).score == 0.0


def test_the_last_answer_wins_and_spellings_of_one_answer_do_not_contradict(verify):
    assert verify("Answer: 6. Wait, I forgot one.\nAnswer: 7", {"answer": "7"}).score == 1.0
    assert verify("Answer: 7. Wait, I forgot one.\nAnswer: 6", {"answer": "7"}).score == 0.0
    assert verify("\\boxed{\\frac{1}{2}}\n\nAnswer: 0.5", {"answer": "1/2"}).score == 1.0
    assert verify(r"\boxed{3} and \boxed{4}", {"answer": "3, 4"}).score == 1.0
    assert verify(r"\boxed{\boxed{7}}", {"answer": "7"}).score == 1.0


def test_what_is_logged_is_the_answer(verify):
    verdict = verify(r"\boxed{7.0}", {"answer": "8"})
    assert (verdict.score, verdict.answer) == (0.0, "7")
    assert verify("nothing", {"answer": "8"}).answer is None
    for missing in (" ", None):
        assert verify("Answer: None", {"answer": missing}).failure == "the example has no ground truth"


def test_a_letter_is_not_cut_off_the_sentence_that_takes_it_back(verify):
    for letter in ("A", "(A)", "$A$", "**A**"):
        assert verify(f"Answer: {letter}. No, B", {"answer": "A"}).score == 0.0
    assert verify("Answer: A. The rest follows.", {"answer": "A"}).score == 1.0


@pytest.mark.parametrize(
    ("truth", "said", "vote"),
    [
        ("1/2", ["0.5", r"\frac{1}{2}", "1/2", "0.50", r"50\%", r"x = \frac12"], "1/2"),
        ("2", ["0.5", r"\frac{1}{2}", "1/2", "0.50"], "1/2"),
        ("C", ["C", r"\text{C}", r"\textbf{(C)}", "C. 12", "option C"], "C"),
        ("B", ["C", r"\text{C}", r"\textbf{(C)}", "C. 12", "option C"], "C"),
        ("18", ["18", r"18\text{ cm}", "x=18", "18 (dollars)"], "18"),
        ("19", ["18", r"18\text{ cm}", "x=18", "18 (dollars)"], "18"),
        (r"2\sqrt{2}", [r"\sqrt{8}", r"2 \sqrt{2}", r"2\sqrt2"], r"2\sqrt{2}"),
        ("17 cm", ["17 m"], "17 m"),
        ("0", ["0.0", "-0"], "0"),
    ],
)
def test_equal_answers_are_one_vote(verify, truth, said, vote):
    assert {verify(rf"\boxed{{{text}}}", {"answer": truth}).answer for text in said} == {vote}


NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.integers(0, 10**9).map(lambda n: f"{n:,}"),
    st.decimals(-1000, 1000, places=3).map(str),
    st.tuples(st.integers(-50, 50), st.integers(1, 50)).map(lambda q: rf"\frac{{{q[0]}}}{{{q[1]}}}"),
    st.tuples(st.integers(0, 50), st.integers(1, 50)).map(lambda q: f"{q[0]}/{q[1]}"),
)


@settings(max_examples=60, deadline=None)
@given(truth=NUMBERS, said=NUMBERS)
def test_the_quick_path_never_disagrees_with_math_verify(verify, truth, said):
    truth, said = canonical(truth), canonical(said)
    for pair in ((truth, said), (truth, truth), (truth, str(plain_number(truth)))):
        quick = quickly_equal(*pair)
        if quick is not None:
            assert verify._checked(*pair) == quick, pair


@given(st.fractions(max_denominator=10**6))
def test_plain_numbers_are_exact(value):
    assert plain_number(f"{value.numerator}/{value.denominator}") == value
    assert plain_number(rf"\frac{{{value.numerator}}}{{{value.denominator}}}") == value


def test_plain_numbers_refuse_everything_else():
    for text in ("1/0", "٥", "1_000", "0x10", "nan", "inf", "1e5", "1..2", "--1", "", "9" * 300, "True"):
        assert plain_number(text) is None, text
    assert plain_number("1.") == Fraction(1)


@pytest.mark.parametrize(
    "said",
    [
        "10**10**10",
        "10^{10^{10}}",
        "9^{99999999}",
        "99999!",
        "5!!!!",
        "9" * 100_000,
        r"\frac{1}{" * 2000 + "1" + "}" * 2000,
        r"\sqrt{" * 60 + "1" + "}" * 60,
        "(" * 5000 + "1" + ")" * 5000,
        "x" * 50_000,
        "1," * 20_000 + "1",
        "7" + "ha" * 100 + "!",
        "7" + "ha" * 400 + "!",
        "7 " + "ha " * 2000 + "!",
        "A," + "(" * 16_000,
        "7" + r"\text{" * 2000 + "}" * 2000,
        "7=" * 8000,
        r"9\approx" * 24 + "9",
        "7" + " " * 8000 + "**" * 4000 + "x",
        "0." + "1" * 8000 + r"\overline{3}",
    ],
)
def test_monsters_are_wrong_at_once(verify, said):
    start = time.process_time()
    assert verify(rf"\boxed{{{said}}}", {"answer": r"\frac{7}{2}+x"}).score == 0.0
    assert verify(rf"\boxed{{{said}}}", {"answer": "7"}).score == 0.0
    assert verify(rf"\boxed{{{said}}}", {"answer": "B"}).score == 0.0
    assert time.process_time() - start < 1.0


def test_a_monster_that_is_the_truth_is_right(verify):
    assert verify(r"\boxed{2^{2^{100}}}", {"answer": r"2^{2^{100}}"}).score == 1.0


def test_a_check_that_takes_too_long_is_a_failure_and_costs_no_worker():
    slow = MathVerifier(seconds=4, workers=1)
    # Slips past the guard, and sympy does not come back from it: the truth has a power of a power too.
    hard = {"answer": r"2^{2^{100}}+1"}
    start = time.perf_counter()
    verdict = slow(r"\boxed{\sum_{k=1}^{\infty} \frac{\sin(k^k)}{3^{9^{k}}} + 7^{7^{7^{7^{7}}}}}", hard)
    assert verdict.score is None
    assert "took longer than 4 s" in verdict.failure
    assert slow(r"\boxed{\sqrt{8}}", {"answer": r"2\sqrt{2}"}).score == 1.0
    assert time.perf_counter() - start < 120
    slow.pool.close()


HANGING = """
import json, sys, time, os
print("{}", flush=True)
for line in sys.stdin:
    question = json.loads(line)
    if question["do"] == "hang":
        while True: pass
    if question["do"] == "die":
        os._exit(3)
    print(json.dumps({"did": question["do"], "pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    (tmp_path / "hanging_worker.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "hanging_worker"


def test_hung_and_dead_workers_are_replaced_in_any_thread(hanging):
    pool = WorkerPool(hanging, size=2)
    outcomes = []

    def ask(what):
        try:
            outcomes.append(pool.ask({"do": what}, 5.0)["did"])
        except (WorkerTimeoutError, EOFError) as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=ask, args=(what,)) for what in ["hang", "work", "die", "work", "hang", "work"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(outcomes) == ["EOFError", "WorkerTimeoutError", "WorkerTimeoutError", "work", "work", "work"]
    assert pool.ask({"do": "again"}, 5)["did"] == "again"
    pool.close()


def test_a_killed_worker_is_gone(hanging):
    worker = Worker(hanging)
    pid = worker.process.pid
    with pytest.raises(WorkerTimeoutError):
        worker.ask({"do": "hang"}, 0.2)
    assert not worker.alive
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_worker_is_reused(hanging):
    pool = WorkerPool(hanging, size=2)
    assert len({pool.ask({"do": "x"}, 5)["pid"] for _ in range(4)}) == 1
    pool.close()


def test_a_worker_that_cannot_start_says_why():
    from poise.errors import RewardError

    with pytest.raises(RewardError, match=r"no_such_module_at_all did not start: .*No module named"):
        WorkerPool("no_such_module_at_all", 1).ask({}, 1)


def test_math_is_registered():
    assert resolve("math")(r"\boxed{4}", {"answer": "4"}).score == 1.0
