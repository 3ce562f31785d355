"""Answers to prompts, by whichever engine; a job that was stopped goes on where it was. Everybody asks here.

prompts -> one for each form of the prompt and each sample -> a file of responses, its key beside it
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from tisdpo_jax import distributed, interchange
from tisdpo_jax.artifacts import differences, digest, write_text
from tisdpo_jax.chat import Endpoint, key_from
from tisdpo_jax.config import Experiment, GenerateRecipe, GenerateSection, carried, replaced
from tisdpo_jax.data import (
    HH_MARKS,
    SETTINGS,
    InvalidRecord,
    Message,
    Prompt,
    PromptView,
    Template,
    Unusable,
    as_record,
    check_views,
    count_reasons,
    frame,
    make_views,
    open_template,
    prompt_ids,
    read_file,
    read_prompts,
    render,
    show_as,
)
from tisdpo_jax.errors import CheckpointError, DataError
from tisdpo_jax.models import Model
from tisdpo_jax.sampling import (
    KINDS,
    Options,
    Request,
    Response,
    SamplingParams,
    append_responses,
    http,
    read_responses,
    resume_responses,
    sample,
)
from tisdpo_jax.stages import models
from tisdpo_jax.stages.positions import warn_of_rows
from tisdpo_jax.stages.scores import text_identity
from tisdpo_jax.stages.session import Session
from tisdpo_jax.stages.subjects import Subject, model_files
from tisdpo_jax.training import Progress
from tisdpo_jax.types import Variables

log = logging.getLogger(__name__)

KEYS = ("TISDPO_API_KEY", "OPENAI_API_KEY")  # environment variables, the first that is set
RESPONSES = "responses.jsonl"
LISTED = 20  # answers that an endpoint did not give, of those that the terminal shows
NONE = ("filtered", "failed", "too long")  # `finish` of responses that are no answers


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """Who answers, where this program does."""

    model: Model
    variables: Callable[[], Variables]
    identity: dict[str, str]  # of what `variables` gives
    files: Path | None = None  # of the model, where that is not the session's


def summary(responses: Sequence[Response]) -> str:
    """Counts of what became of the prompts on a line, and a line for each that the endpoint has no answer to."""
    kinds = ("empty", *(name for finish, name in KINDS.items() if finish != "stop"))
    counts = {name: sum(response.kind == name for response in responses) for name in kinds}
    shown = [f"{count} {name}" for name, count in counts.items() if count or name in ("empty", KINDS["length"])]
    lines = [f"{len(responses)} answers: {', '.join(shown)}"]
    told = [response for response in responses if response.reason]
    lines += [f"  {response.id}: {response.kind}: {response.reason}" for response in told[:LISTED]]
    if len(told) > LISTED:
        lines.append(f"  ... and {len(told) - LISTED} more, all of them in the file, under `reason`")
    return "\n".join(lines)


def open_prompts(source: str, limit: int | None) -> tuple[tuple[Prompt, ...], tuple[InvalidRecord, ...]]:
    """Prompts of a file, or of the package: `demo:prompts`, `demo:prompts-eval`."""
    if source in ("demo:prompts", "demo:prompts-eval"):
        name = source.removeprefix("demo:") + ".jsonl"
        path = str(importlib.resources.files("tisdpo_jax.data") / "demo" / name)
    else:
        path = source
    prompts, invalid = read_prompts(path, limit=limit or 0)
    if not prompts:
        raise DataError(f"{source}: none of its {len(invalid)} records is a prompt ({count_reasons(invalid)})")
    if invalid and jax.process_index() == 0:
        log.warning("%s: %d records hold no prompt (%s)", source, len(invalid), count_reasons(invalid))
    return prompts, invalid


def prompts_in_views(
    session: Session, prompts: Sequence[Prompt], names: Sequence[str], samples: int
) -> tuple[list[Prompt], list[InvalidRecord]]:
    """Every prompt in the views `names` ("main", "plus", "minus"), and the prompts that the template cannot write."""
    config = session.config
    template = open_template(config.data.template, session.tokenizer)
    contrast = (config.contrast.positive_prompt, config.contrast.negative_prompt) if set(names) - {"main"} else None
    views = make_views(config.data.system, contrast)
    check_views(template, views)
    chosen = [view for view in views if view.name in names]
    asked: list[Prompt] = []
    invalid: list[InvalidRecord] = []
    for prompt in prompts:
        try:
            shown = [(view, _checked(session, template, view, prompt)) for view in chosen]
        except Unusable as problem:
            invalid.append(InvalidRecord(prompt.origin, problem.reason, problem.detail))
            continue
        asked += [
            Prompt(f"{prompt.id}/{view.name}/{number}", messages, prompt.origin)
            for view, messages in shown
            for number in range(samples)
        ]
    return asked, invalid


def _checked(session: Session, template: Template, view: PromptView, prompt: Prompt) -> tuple[Message, ...]:
    prompt_ids(prompt.messages, session.tokenizer, template, system=view.default_system, max_length=2**30)
    return show_as(view, prompt.messages)


def answers(
    session: Session, generator: Generator | None, asked: Sequence[Prompt], path: Path, label: str
) -> dict[str, Response]:
    """A response to every question, by id; those that `path` holds are not made again. `generator` is for engine local.

    Raises: CheckpointError when what is on disk was made from something else; Interrupted; what the engine raises.
    """
    section = session.config.sampling
    _check_key(path, _key(session, generator, asked))
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
            _locally(session, generator, left, take, label)
    finally:
        bar.close()
    return {question.id: there[question.id] for question in asked}


def _locally(
    session: Session,
    generator: Generator | None,
    left: Sequence[Prompt],
    take: Callable[[Sequence[Response]], None],
    label: str,
) -> None:
    if generator is None:
        raise ValueError("answers: engine local needs a generator")
    template = open_template(session.config.data.template, session.tokenizer)
    write = functools.partial(prompt_ids, tokenizer=session.tokenizer, template=template, max_length=2**30)
    requests = []
    for question in left:
        name, _, number = question.id.rpartition("/")
        requests.append(Request(name, write(question.messages).tolist(), int(number)))
    section, files = session.config.sampling, generator.files or session.model_path
    lengths = [len(one.ids) + section.max_new_tokens for one in requests if len(one.ids) <= section.max_prompt]
    field = "sampling.max_prompt, or sampling.max_new_tokens,"
    warn_of_rows(lengths, generator.model.config, files, "prompts with the longest answers that they may get", field)
    decode = functools.partial(session.tokenizer.decode, skip_special_tokens=True)
    done: list[Response] = []

    def flush() -> None:
        take(done)
        done.clear()
        session.interrupt.poll(label)

    found = sample(
        generator.model, generator.variables(), requests, options(session, files), decode=decode, on_batch=flush
    )
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


def _draw(config: Experiment) -> SamplingParams:
    section = config.sampling
    return SamplingParams(section.temperature, section.top_k or 0, section.top_p, section.min_p)


def stops(config: Experiment) -> tuple[str, ...]:
    """Strings that end an answer. A base model that was shown plain turns may go on with the next one."""
    return tuple(dict.fromkeys([*config.sampling.stop, *(sorted(HH_MARKS) if config.data.template == "hh" else [])]))


def _over_http(
    session: Session,
    left: Sequence[Prompt],
    take: Callable[[Sequence[Response]], None],
    label: str,
    witness: Prompt | None,
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

    def stripped(response: Response) -> None:
        take([dataclasses.replace(response, response=response.response.strip())])

    http.ask_endpoint(
        endpoint,
        left,
        draw=_draw(session.config),
        max_new_tokens=section.max_new_tokens,
        stop=stops(session.config),
        seed=section.seed,
        take=stripped,
        poll=lambda: session.interrupt.poll(label),
        witness=witness,
    )


def _from_files(asked: Sequence[Prompt], path: Path) -> dict[str, Response]:
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


def _key(session: Session, generator: Generator | None, asked: Sequence[Prompt]) -> dict[str, Any]:
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
    if generator is None:
        return key | {"sampling.endpoint_model": section.endpoint_model}
    return key | {
        "model": " ".join(f"{name} {value}" for name, value in sorted(generator.identity.items())),
        "architecture": digest(repr(generator.model.config)),
        "dtype": generator.model.compute.dtype,
        "lora scale": str(generator.model.compute.lora_scale) if "lora" in generator.identity else "none",
        "sampling.max_prompt": str(section.max_prompt),
        "end of answers": str(options(session, generator.files).eos_ids),
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


def answers_of(
    session: Session, subject: Subject, prompts: Sequence[Prompt], folder: Path, *, temperature: float = 0.0
) -> list[Response | None]:
    """A model's answers with the settings of `evaluation`, in its own tokenizer, kept in `folder` under what they are.

    None where the template cannot write the prompt.

    Raises: Interrupted between two batches.
    """
    section = session.config.evaluation
    sampling = GenerateSection(
        engine="local",
        temperature=temperature,
        seed=section.seed,
        batch_size=section.batch_size,
        max_new_tokens=section.max_new_tokens,
        max_prompt=session.config.data.max_length,
    )
    config = replaced(carried(session.config, GenerateRecipe), "sampling", sampling)
    session = dataclasses.replace(session, config=config, tokenizer=subject.tokenizer)
    asked, unusable = prompts_in_views(session, prompts, ("main",), 1)
    for invalid_record in unusable if jax.process_index() == 0 else ():
        log.warning("not answered by %s: %s", subject.name, invalid_record)
    if not asked:
        return [None] * len(prompts)
    generator = generator_of(session, subject)
    same = digest(_key(session, generator, asked))[:8]
    path = folder / f"{subject.name.replace(' ', '-').lower()}-{same}.jsonl"
    responses = answers(session, generator, asked, path, f"answers of {subject.name}")
    return [responses.get(f"{prompt.id}/main/0") for prompt in prompts]


def text_of(response: Response | None) -> str | None:
    """What was answered; None for what is no answer."""
    return None if response is None or response.finish in NONE else response.response


def generator_of(session: Session, subject: Subject) -> Generator:
    identity = {name: models.identify(tree) for name, tree in subject.variables.items()}
    return Generator(subject.model, lambda: subject.variables, identity, model_files(session, subject))


def end_tokens(tokenizer: Any, template: str, model: str | Path) -> list[int]:
    """Tokens that end an answer: all that the files of `model` say, the tokenizer's EOS, and what ends a turn."""
    opened = open_template(template, tokenizer)
    messages = [Message("user", "a")]
    written = render(opened, frame(opened, messages), messages, "b").text
    return sorted({*interchange.stop_ids(model, tokenizer), tokenizer(written, add_special_tokens=False).input_ids[-1]})


def from_file(path: str, prompts: Sequence[Prompt]) -> list[str | None]:
    """Answers of a .jsonl: `{"id" or "prompt", "response"[, "finish"]}`; None for a prompt that it does not answer.

    A response that `finish` says was filtered, failed, or never asked for is none.

    Raises: DataError for a record that is no answer, or a file that answers none of the prompts.
    """
    found: dict[str, str] = {}
    for row in read_file(Path(path).expanduser(), path):
        record = row.value
        if isinstance(record, Unusable) or not isinstance(record, Mapping):
            raise DataError(f"{path}:{row.place}: not an object with 'response' and 'id' or 'prompt'; mend the record")
        name, answer = record.get("id", record.get("prompt")), record.get("response", record.get("answer"))
        if name is None or not isinstance(answer, str):
            raise DataError(f"{path}:{row.place}: needs text in 'response', and 'id' or 'prompt'; mend the record")
        if record.get("finish", "stop") not in NONE:
            found[str(name)] = answer
    texts = [found.get(prompt.id, found.get(prompt.text)) for prompt in prompts]
    if all(text is None for text in texts):
        raise DataError(f"{path}: answers none of the {len(prompts)} prompts; ids or prompts must be the same")
    return texts
