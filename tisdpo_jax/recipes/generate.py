"""Answers to prompts, by whichever engine; a job that was stopped goes on where it was.

prompts -> questions, one for each form of the prompt and each sample -> responses.jsonl
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from tisdpo_jax import distributed
from tisdpo_jax.artifacts import differences, digest, write_text
from tisdpo_jax.chat import Endpoint, key_from
from tisdpo_jax.config import Experiment, with_prompts
from tisdpo_jax.data import Message, Prompt, Rejection, open_template, prompt_ids, read_prompts
from tisdpo_jax.data.records import SETTINGS, Unusable, as_record, count_reasons
from tisdpo_jax.data.template import HH_MARKS, Template
from tisdpo_jax.data.views import View, check_views, make_views, show
from tisdpo_jax.errors import CheckpointError, DataError
from tisdpo_jax.models import Model
from tisdpo_jax.recipes import models, run_dir
from tisdpo_jax.recipes.evaluate import end_tokens
from tisdpo_jax.recipes.positions import warn_of_rows
from tisdpo_jax.recipes.scores import text_identity
from tisdpo_jax.recipes.session import Session, open_session
from tisdpo_jax.recipes.subjects import model_files, open_subject
from tisdpo_jax.sampling import Draw, Options, Request, http, sample
from tisdpo_jax.sampling.responses import KINDS, Response, append_responses, read_responses, resume_responses
from tisdpo_jax.training.interrupt import Interrupt, listening
from tisdpo_jax.training.programs import keep_on_disk
from tisdpo_jax.training.progress import Progress
from tisdpo_jax.types import Variables

log = logging.getLogger(__name__)

KEYS = ("TISDPO_API_KEY", "OPENAI_API_KEY")  # environment variables, the first that is set
QUESTIONS, RESPONSES = "prompts.jsonl", "responses.jsonl"
LISTED = 20  # answers that an endpoint did not give, of those that the terminal shows


@dataclasses.dataclass(frozen=True)
class Question:
    """A conversation as the model is shown it, and one answer wanted."""

    id: str  # PROMPT/VIEW/SAMPLE
    messages: tuple[Message, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Voice:
    """Who answers, where this program does."""

    model: Model
    variables: Callable[[], Variables]
    identity: dict[str, str]  # of what `variables` gives
    files: Path | None = None  # of the model, where that is not the session's


def generate(config: Experiment) -> None:
    """`tisdpo generate`: answers to `sampling.prompts`, into `run_dir`/responses.jsonl."""
    config = with_prompts(config)
    keep_on_disk(config.compile_cache)
    directory, interrupt = Path(config.run_dir).expanduser(), Interrupt()
    distributed.check_alike(json.dumps(dataclasses.asdict(config.sampling), sort_keys=True))
    with listening(interrupt), run_dir.opened(directory, config):
        session = open_session(config, directory, interrupt, pairs=False)
        with session.metrics, jax.set_mesh(session.mesh):
            prompts, rejections = open_prompts(config.sampling.prompts, config.sampling.limit)
            asked, unusable = questions(session, prompts, (config.sampling.show,), config.sampling.samples)
            subject = (
                open_subject(session, "policy", config.sampling.policy or str(session.model_path), frozen=True)
                if config.sampling.engine == "local"
                else None
            )
            voice = None
            if subject is not None:
                variables = subject.variables
                identity = {name: models.identify(tree) for name, tree in variables.items()}
                voice = Voice(subject.model, lambda: variables, identity, model_files(session, subject))
            path = directory / RESPONSES
            found = answers(session, voice, asked, path, "answers")
    if jax.process_index() == 0:
        for rejection in (*rejections, *unusable):
            print(f"no prompt: {rejection}")
        print(f"{summary(list(found.values()))}\nresponses {path}", flush=True)


def summary(responses: Sequence[Response]) -> str:
    """Counts of what became of the questions on a line, and a line for each that the endpoint has no answer to."""
    kinds = ("empty", *(name for finish, name in KINDS.items() if finish != "stop"))
    counts = {name: sum(response.kind == name for response in responses) for name in kinds}
    shown = [f"{count} {name}" for name, count in counts.items() if count or name in ("empty", KINDS["length"])]
    lines = [f"{len(responses)} answers: {', '.join(shown)}"]
    told = [response for response in responses if response.reason]
    lines += [f"  {response.id}: {response.kind}: {response.reason}" for response in told[:LISTED]]
    if len(told) > LISTED:
        lines.append(f"  ... and {len(told) - LISTED} more, all of them in the file, under `reason`")
    return "\n".join(lines)


def open_prompts(source: str, limit: int) -> tuple[tuple[Prompt, ...], tuple[Rejection, ...]]:
    """Prompts of a file, or of the package: `demo:prompts`, `demo:prompts-eval`."""
    if source in ("demo:prompts", "demo:prompts-eval"):
        name = source.removeprefix("demo:") + ".jsonl"
        prompts, rejections = read_prompts(
            str(importlib.resources.files("tisdpo_jax.data") / "demo" / name), limit=limit
        )
    else:
        prompts, rejections = read_prompts(source, limit=limit)
    if not prompts:
        raise DataError(f"{source}: none of its {len(rejections)} records is a prompt ({count_reasons(rejections)})")
    if rejections and jax.process_index() == 0:
        log.warning("%s: %d records hold no prompt (%s)", source, len(rejections), count_reasons(rejections))
    return prompts, rejections


def questions(
    session: Session, prompts: Sequence[Prompt], names: Sequence[str], samples: int
) -> tuple[list[Question], list[Rejection]]:
    """Every prompt in the views `names` ("main", "plus", "minus"), and the prompts that the template cannot write."""
    config = session.config
    template = open_template(config.data.template, session.tokenizer)
    contrast = (config.contrast.positive_prompt, config.contrast.negative_prompt) if set(names) - {"main"} else None
    views = make_views(config.data.system, contrast)
    check_views(template, views)
    chosen = [view for view in views if view.name in names]
    asked: list[Question] = []
    rejections: list[Rejection] = []
    for prompt in prompts:
        try:
            shown = [(view, _checked(session, template, view, prompt)) for view in chosen]
        except Unusable as problem:
            rejections.append(Rejection(prompt.origin, problem.reason, problem.detail))
            continue
        asked += [
            Question(f"{prompt.id}/{view.name}/{number}", messages)
            for view, messages in shown
            for number in range(samples)
        ]
    return asked, rejections


def _checked(session: Session, template: Template, view: View, prompt: Prompt) -> tuple[Message, ...]:
    prompt_ids(prompt.messages, session.tokenizer, template, system=view.default_system, max_length=2**30)
    return show(view, prompt.messages)


def answers(
    session: Session, voice: Voice | None, asked: Sequence[Question], path: Path, label: str
) -> dict[str, Response]:
    """A response to every question, by id; those that `path` holds are not made again. `voice` is for engine local.

    Raises: CheckpointError when what is on disk was made from something else; Interrupted; what the engine raises.
    """
    section = session.config.sampling
    _check_key(path, _key(session, voice, asked))
    if section.engine == "files":
        return _from_files(asked, path)
    there = resume_responses(path)
    distributed.wait_for_all(f"{label}: what is there")
    left = [question for question in asked if question.id not in there]
    if len(left) < len(asked):
        log.info("%s: %d of %d are there already", label, len(asked) - len(left), len(asked))
    bar = Progress(
        label, len(asked), done=len(asked) - len(left), unit="answer", enabled=session.config.logging.progress
    )

    def take(found: Sequence[Response]) -> None:
        there.update((response.id, response) for response in found)
        if jax.process_index() == 0:
            append_responses(path, found)
        for _ in found:
            bar.advance()

    try:
        if left and section.engine == "http":
            witness = next((q for q in asked if q.id in there and there[q.id].finish == "stop"), None)
            _over_http(session, left, take, label, witness)
        elif left:
            _locally(session, voice, left, take, label)
    finally:
        bar.close()
    return {question.id: there[question.id] for question in asked}


def _locally(
    session: Session,
    voice: Voice | None,
    left: Sequence[Question],
    take: Callable[[Sequence[Response]], None],
    label: str,
) -> None:
    if voice is None:
        raise ValueError("answers: engine local needs a voice")
    template = open_template(session.config.data.template, session.tokenizer)
    write = functools.partial(prompt_ids, tokenizer=session.tokenizer, template=template, max_length=2**30)
    requests = []
    for question in left:
        name, _, number = question.id.rpartition("/")
        requests.append(Request(name, write(question.messages).tolist(), int(number)))
    section, files = session.config.sampling, voice.files or session.model_path
    lengths = [len(one.ids) + section.max_new_tokens for one in requests if len(one.ids) <= section.max_prompt]
    field = "sampling.max_prompt, or sampling.max_new_tokens,"
    warn_of_rows(lengths, voice.model.config, files, "prompts with the longest answers that they may get", field)
    decode = functools.partial(session.tokenizer.decode, skip_special_tokens=True)
    done: list[Response] = []

    def flush() -> None:
        take(done)
        done.clear()
        session.interrupt.poll(label)

    found = sample(voice.model, voice.variables(), requests, options(session, files), decode=decode, on_batch=flush)
    for index, answer in found:
        text = answer.text.strip()
        done.append(Response(left[index].id, text, answer.finish, tuple(answer.ids), tuple(answer.logps)))
    take(done)


def options(session: Session, files: Path | None = None) -> Options:
    """How the configuration wants answers drawn, from the model whose files those are (None: the session's)."""
    section, template = session.config.sampling, session.config.data.template
    return Options(
        draw=_draw(session.config),
        max_new_tokens=section.max_new_tokens,
        max_prompt=section.max_prompt,
        batch_size=section.batch_size,
        seed=section.seed,
        eos_ids=tuple(end_tokens(session.tokenizer, template, files or session.model_path)),
        stop=stops(session.config),
    )


def _draw(config: Experiment) -> Draw:
    section = config.sampling
    return Draw(section.temperature, section.top_k, section.top_p, section.min_p)


def stops(config: Experiment) -> tuple[str, ...]:
    """Strings that end an answer. A base model that was shown plain turns may go on with the next one."""
    own = [part for part in config.sampling.stop.split("||") if part]
    return tuple(dict.fromkeys([*own, *(sorted(HH_MARKS) if config.data.template == "hh" else [])]))


def _over_http(
    session: Session,
    left: Sequence[Question],
    take: Callable[[Sequence[Response]], None],
    label: str,
    witness: Question | None,
) -> None:
    if jax.process_count() > 1:
        raise DataError("sampling.engine http asks from one process; run `tisdpo generate` on one machine first")
    section = session.config.sampling
    endpoint = Endpoint(
        section.url,
        section.endpoint_model,
        key=key_from(KEYS),
        timeout=section.timeout,
        retries=section.retries,
        concurrency=section.concurrency,
        fields="sampling.url, sampling.endpoint_model",
    )
    for question in left:
        if any(message.extra or message.role in SETTINGS for message in question.messages):
            raise DataError(
                f"prompt {question.id}: sampling.engine http sends roles and text, and this one has tools or other "
                "fields; take them out, or choose engine local or files"
            )

    def as_asked(question: Question) -> http.Question:
        return http.Question(question.id, tuple((message.role, message.content) for message in question.messages))

    def stripped(response: Response) -> None:
        take([dataclasses.replace(response, response=response.response.strip())])

    http.ask_all(
        endpoint,
        [as_asked(question) for question in left],
        draw=_draw(session.config),
        max_new_tokens=section.max_new_tokens,
        stop=stops(session.config),
        seed=section.seed,
        take=stripped,
        poll=lambda: session.interrupt.poll(label),
        witness=as_asked(witness) if witness is not None else None,
    )


def _from_files(asked: Sequence[Question], path: Path) -> dict[str, Response]:
    """Writes the questions beside `path`, and reads `path` where somebody has put it."""
    target = path.with_name(path.name.replace("responses", "prompts"))
    if jax.process_index() == 0:
        lines = [json.dumps({"id": q.id, **as_record(q.messages)}) + "\n" for q in asked]
        target.write_text("".join(lines), encoding="utf-8")
    distributed.wait_for_all("questions")
    if not path.exists():
        raise DataError(
            f'{path}: is not there yet; answer the {len(asked)} prompts of {target}, a line {{"id": ..., "response": '
            '"..."} for each, and run the same command again'
        )
    return read_responses(path, [question.id for question in asked])


def _key(session: Session, voice: Voice | None, asked: Sequence[Question]) -> dict[str, Any]:
    """Everything that the answers depend on, under the names that an error would use."""
    config, section = session.config, session.config.sampling
    key: dict[str, Any] = {
        "prompts": digest([[q.id, as_record(q.messages)] for q in asked]),
        "sampling.engine": section.engine,
    }
    if section.engine == "files":
        return key
    drawn = {"max_new_tokens": section.max_new_tokens, "seed": section.seed, "stop": list(stops(config))}
    key |= {"sampling": {**dataclasses.asdict(_draw(config)), **drawn}}
    if voice is None:
        return key | {"sampling.endpoint_model": section.endpoint_model}
    return key | {
        "model": " ".join(f"{name} {value}" for name, value in sorted(voice.identity.items())),
        "architecture": digest(repr(voice.model.config)),
        "dtype": voice.model.compute.dtype,
        "lora scale": str(voice.model.compute.lora_scale) if "lora" in voice.identity else "none",
        "sampling.max_prompt": str(section.max_prompt),
        "end of answers": str(options(session, voice.files).eos_ids),
        **text_identity(session),
    }


def _check_key(path: Path, key: dict[str, Any]) -> None:
    """Leaves beside `path` what its answers are made of, or refuses what was made of something else."""
    label = path.with_name(path.stem + ".key.json")
    if label.exists():
        found: dict[str, Any] = json.loads(label.read_text(encoding="utf-8"))
        changed = differences(found, key)
        if changed:
            raise CheckpointError(
                f"{path}: was made with another configuration: {'; '.join(changed)}. Nothing was changed: go back to "
                f"those values, use a new run_dir, or delete {path.name} and {label.name} to ask again"
            )
    elif jax.process_index() == 0:
        label.parent.mkdir(parents=True, exist_ok=True)
        write_text(label, json.dumps(key, sort_keys=True, indent=1) + "\n")
    distributed.wait_for_all(f"key of {path.name}")
