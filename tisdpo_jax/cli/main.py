"""`tisdpo`: parse, build, call.

Exit codes: 0 done, 2 usage or configuration, 42 saved and resumable, 1 crash; 130 and 141 as other programs of the
shell: stopped by Ctrl-C before there was anything to save, nobody reads the output any more.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

from tisdpo_jax._version import __version__
from tisdpo_jax.errors import ConfigError, UserError

DONE, CRASH, USAGE, RESUMABLE = 0, 1, 2, 42
KEYBOARD, PIPE = 130, 141  # 128 and the number of the signal
LEAVE_AFTER = 60.0  # seconds that threads have at the end, where it is none that is planned

VERBS = {
    "run": "the whole job: contrastive models, scores and weights, policy, evaluation, export, report",
    "show": "what a run has, what it would make, and what was made with another configuration; changes nothing",
    "generate": "answers to prompts: `sampling.prompts`, by this program or another; resumes",
    "train": "up to the trained policy",
    "score": "up to the cached scores that token weights are made of",
    "evaluate": "a run's policy, or any model, on pairs and by a judge; `tisdpo evaluate --help`",
    "export": "the policy for transformers and peft",
    "inspect": "what records become: tokens, mask, counts of a file; `--pictures DIR` draws the weights of a run",
    "plan": "memory, flops and time of a step on hardware that is not here: `--topology v5e:8x8`",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb; a UserError is one line on stderr. Returns the exit code."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing is meant to be
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("absl", "orbax", "jax", "transformers", "httpx2", "httpcore2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = _main(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        code = _tell(f"error: {error}", USAGE)
    except KeyboardInterrupt:  # before a run listens, or in a verb that leaves nothing to go on with
        code = _tell("stopped", KEYBOARD)
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        code = PIPE
    except Exception as error:
        if not _is_interrupted(error):
            raise
        code = _tell(f"{error}; the same command goes on from here", RESUMABLE)
    return _flushed(code)


def command() -> NoReturn:
    """The program `tisdpo`: `main`, and an end of the process whatever threads other packages have left behind."""
    try:
        code = main()
    except SystemExit:
        raise
    except BaseException:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        code = CRASH
    if code != DONE:
        threading.Thread(target=_leave, args=(code,), daemon=True).start()
    sys.exit(code)


def _leave(code: int) -> None:
    """Ends the process with `code` where waiting for its threads has not done so."""
    time.sleep(LEAVE_AFTER)
    names = ", ".join(thread.name for thread in threading.enumerate() if not thread.daemon)
    _tell(f"tisdpo: still here {LEAVE_AFTER:g} s after the end (threads: {names}); leaving", code)
    os._exit(code)


def _is_interrupted(error: Exception) -> bool:
    """Only a run that got as far as importing the loop can raise it; `--help` need not wait for JAX."""
    module = sys.modules.get("tisdpo_jax.training.interrupt")
    return module is not None and isinstance(error, module.Interrupted)


def _nobody_reads() -> bool:
    """Whether the reader of stdout has left: another pipe than this may be broken."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def _tell(text: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody listens any more
        print(text, file=sys.stderr, flush=True)
    return code


def _flushed(code: int) -> int:
    """The exit code when everything is written; whoever reads our output may have left (`| head`)."""
    if sys.stdout is None or sys.stdout.closed:
        return code
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # what is left would be written, and fail again, when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            return code or PIPE
        return _tell(f"error: the output cannot be written: {error.strerror}", code or CRASH)
    return code


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return DONE if arguments else USAGE
    if arguments[0] in ("-V", "--version"):
        print(f"tisdpo_jax {__version__}")
        return DONE
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(VERBS)}"
        raise ConfigError(f"unknown verb {verb!r}; {hint}")
    from tisdpo_jax.cli import options

    if any(argument in ("-h", "--help") for argument in rest):
        print(f"{_usage(verb)}\n\n{options.help_text(rest, verb)}")
        return DONE
    if verb in ("evaluate", "inspect", "plan"):
        from tisdpo_jax.cli.verbs import evaluate_verb, inspect, plan_verb

        return {"evaluate": evaluate_verb, "inspect": inspect, "plan": plan_verb}[verb](rest)
    file, overrides, _ = options.read_arguments(rest)
    if file is None and not overrides:
        example = "--model.path demo --sampling.prompts FILE" if verb == "generate" else "configs/quickstart.yaml"
        raise ConfigError(f"name a configuration file, or its fields: tisdpo {verb} {example}")
    config = options.load_valid(file, overrides, verb)
    if verb == "show":
        from tisdpo_jax.verbs import show

        print(show.text(config))
        return DONE
    from tisdpo_jax import distributed

    distributed.initialize()
    from tisdpo_jax import verbs

    if verb == "generate":
        verbs.generate.generate(config)
    else:
        verbs.perform(verb, config)
    return DONE


def _usage(verb: str = "") -> str:
    if verb == "evaluate":
        from tisdpo_jax.cli.verbs import USAGE as usage_of_evaluate

        return usage_of_evaluate
    verbs = "\n".join(f"  {verb:<9} {what}" for verb, what in VERBS.items())
    usage = "usage: tisdpo VERB CONFIG.yaml [--dotted.field value]..."
    return f"{usage}\n\n{verbs}\n\n`tisdpo VERB --help` lists recipes and fields."
