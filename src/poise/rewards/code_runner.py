"""Runs inside the sandbox, beside the untrusted program: evaluates calls and writes their values down.

Standard library only; its text is handed into the sandbox as the main program. It knows no expected result. A program
that forges what is written here has done no more than return another value.
"""

import collections
import collections.abc
import itertools
import json
import os

_MOST = 100_000  # items of an iterator, which may have no end


def main() -> None:
    folder = "/sandbox" if os.path.isdir("/sandbox") else "."
    with open(os.path.join(folder, "calls.json")) as file:
        calls = json.load(file)
    with open(os.path.join(folder, "solution.py")) as file:
        source = file.read()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the program prints is no answer
    scope = {"__name__": "solution"}
    scope["_entry"] = lambda name: _entry(scope, name)
    try:
        exec(compile(source, "solution.py", "exec"), scope)
    except BaseException as error:
        answers.write(json.dumps({"broken": f"{type(error).__name__}: {error}"[:300]}) + "\n")
        return
    for call in calls:
        try:
            answer = json.dumps({"value": plain(eval(call, scope))})
        except BaseException as error:
            answer = json.dumps({"error": f"{type(error).__name__}: {error}"[:300]})
        answers.write(answer + "\n")


def _entry(scope, name):
    if name in scope:
        return scope[name]
    if "Solution" in scope:
        return getattr(scope["Solution"](), name)
    raise NameError(f"the program defines no {name}")


def plain(value):
    """A value as JSON that keeps Python's types apart; of what is no plain data, only whether it is true is kept."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [plain(item) for item in value]
    if type(value) in (tuple, set, frozenset):
        return {type(value).__name__: [plain(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[plain(key), plain(item)] for key, item in value.items()]}
    if type(value) is complex:
        return {"complex": [value.real, value.imag]}
    if type(value) in (bytes, bytearray):
        return {"bytes": list(value)}
    if isinstance(value, (list, tuple, set, int, float, str)):
        kind = next(kind for kind in (list, tuple, set, bool, int, float, str) if isinstance(value, kind))
        return plain(kind(value))
    if isinstance(value, (collections.abc.Iterator, collections.abc.MappingView, collections.deque, range)):
        items = [plain(item) for item in itertools.islice(value, _MOST + 1)]
        if len(items) <= _MOST:
            return {"iter" if isinstance(value, collections.abc.Iterator) else "view": items}
    if type(value).__module__ == "fractions" or (type(value).__module__ == "decimal" and abs(value.adjusted()) < 400):
        return {"ratio": list(value.as_integer_ratio())}
    return {"opaque": [type(value).__name__]} if value else {"other": type(value).__name__}


if __name__ == "__main__":
    main()
