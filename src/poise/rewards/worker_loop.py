"""What every worker process does: answers questions line by line until its input ends, within limits of its own.

It may hang or be killed at any moment: `workers` sees to that. Its memory is limited, and the kernel ends it if a
question takes far longer than its caller waits.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

_MEMORY = 2 << 30  # bytes of address space; sympy itself takes a few hundred megabytes


def serve(prepare: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Prepares, says so, and answers; an exception becomes {"error": its name}.

    Args:
        prepare: imports what is needed and returns the function from a question to its answer; every question has
            "seconds", the time that its caller waits.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing that a library prints may look like an answer
    work = prepare()
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers.write("{}\n")
    os.dup2(1, 2)  # nobody reads complaints from here on
    for line in sys.stdin:
        question = json.loads(line)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, question["seconds"] + 5)
        try:
            answer = work(question)
        except (Exception, RecursionError, MemoryError) as error:
            answer = {"error": type(error).__name__}
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer) + "\n")
