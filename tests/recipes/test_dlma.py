"""DLMA on a tiny model: a whole run, what it leaves, going on after a kill, rounds, and its parts."""

from __future__ import annotations

import html.parser
import json
import shutil
import sys
import types
import typing
from pathlib import Path

import numpy as np
import pytest
from chat_stub import Stub
from runs import command, exported

from tisdpo_jax.config import PROMPT_PAIRS, Experiment, GenerateRecipe, build, with_prompts
from tisdpo_jax.config.schema import PromptPair
from tisdpo_jax.generation import open_prompts, options_of
from tisdpo_jax.training.interrupt import Interrupt, Interrupted

PROMPTS = [
    "tell me about the cat", "what is bread", "who sees the dog", "how do I bake", "is there weather on the moon",
    "where is the old man", "what does a bird want", "may I ask you a question", "the girl is angry", "help me now",
]  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [json.dumps({"id": f"p{number}", "prompt": text}) for number, text in enumerate(PROMPTS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def options(tiny, prompts, tmp_path) -> dict[str, object]:
    return made(tiny, prompts, tmp_path / "run")


def made(tiny, prompts, run_dir) -> dict[str, object]:
    return {
        "model__path": tiny["model__path"],
        "run_dir": run_dir,
        "recipe": "dlma",
        "data__max_length": 64,
        "data__max_response": 16,
        "sampling__prompts": prompts,
        "sampling__max_new_tokens": 6,
        "sampling__max_prompt": 60,
        "sampling__batch_size": 8,
        "contrast__positive_prompt": "be kind",
        "contrast__negative_prompt": "be rude",
        "dlma__unfinished": "keep",
        "dlma__eval_fraction": 0.2,
        "loss__name": "dlma",
        "mesh__fsdp": 1,
    }


class WandbRun:
    """A W&B run that counts."""

    def __init__(self, **options):
        self.options, self.names, self.ends = options, set(), 0

    def log(self, values):
        self.names |= set(values)

    def finish(self):
        self.ends += 1


@pytest.fixture(scope="module")
def wandb_runs():
    return []


@pytest.fixture(scope="module")
def finished(tiny, prompts, tmp_path_factory, wandb_runs):
    """A whole run: (its options, what it printed)."""
    options = made(tiny, prompts, tmp_path_factory.mktemp("finished") / "run")
    options |= {"lora__rank": 2, "loss__name": "dlma+tisdpo", "sampling__samples": 2}
    with pytest.MonkeyPatch.context() as patched:
        client = types.SimpleNamespace(init=lambda **given: wandb_runs.append(WandbRun(**given)) or wandb_runs[-1])
        patched.setitem(sys.modules, "wandb", client)
        code, output = command("run", **options, logging__wandb="project")
    assert code == 0, output
    return options, output


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_what_it_promises_and_does_nothing_twice(finished):
    options, output = finished
    run = options["run_dir"]
    for name in ("responses.jsonl", "pairs.jsonl", "metrics.jsonl", "scores/train-plus.safetensors"):
        assert (run / "round-1" / name).is_file(), name
    for name in ("report.html", "evaluation.json", "held_out-after.jsonl", "export/model.safetensors", "adapter"):
        assert (run / name).exists(), name
    assert len(lines_of(run / "round-1" / "responses.jsonl")) == 8 * 2 * 2
    assert len(lines_of(run / "held_out-before.jsonl")) == 2
    text = (run / "report.html").read_text(encoding="utf-8")
    html.parser.HTMLParser().feed(text)
    assert "Self-reward of the pairs" in text and "<svg" in text
    for word in ("AUC of the contrast", "relabelled", "contrast by the model before", "the step was compiled"):
        assert word in output
    told = json.loads((run / "round-1" / "selection.json").read_text())
    assert told["pairs"] + sum(told["left_out"].values()) == 16 and 0 <= told["auc"] <= 1
    for pair in lines_of(run / "round-1" / "pairs.jsonl"):
        assert pair["margin"] >= 0 and pair["chosen"] != pair["rejected"]
    policy = exported(run)
    before = {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    code, output = command("run", **options)
    assert code == 0 and "stage round-1 policy: already done" in output and "are there already" in output
    assert {path: path.read_bytes() for path in run.rglob("*.jsonl")} == before
    assert all((policy[name] == value).all() for name, value in exported(run).items())
    code, output = command("run", **{**options, "sampling__seed": 5})
    assert code == 2 and "sampling.seed (was 0, now 5)" in output


def test_evaluate_and_export_take_what_is_there_and_make_nothing(finished, tmp_path):
    """Also where all that the policies were made from is gone; without a policy it is one line, and no directory."""
    options, _ = finished
    run = tmp_path / "run"
    shutil.copytree(options["run_dir"], run)
    for name in ("responses.jsonl", "pairs.jsonl", "scores", "checkpoints"):
        path = run / "round-1" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    left = sorted(path.name for path in (run / "round-1").iterdir())
    policy = exported(run)
    shutil.rmtree(run / "export")
    for verb in ("export", "evaluate"):
        code, output = command(verb, **{**options, "run_dir": run})
        assert code == 0 and "stage policy" not in output, output
    assert sorted(path.name for path in (run / "round-1").iterdir()) == left
    assert all((policy[name] == value).all() for name, value in exported(run).items())
    code, output = command("export", **{**options, "run_dir": run, "loss__beta": 0.3})
    assert code == 2 and "loss.beta (was 0.1, now 0.3)" in output
    code, output = command("evaluate", **{**options, "run_dir": tmp_path / "other"})
    assert code == 2 and "no trained policy is there" in output and not (tmp_path / "other").exists()


def test_a_run_of_rounds_is_one_wandb_run(finished, wandb_runs):
    (run,) = wandb_runs
    assert run.ends == 1 and "round-1/policy/train/objective" in run.names
    assert run.options["id"] == json.loads((finished[0]["run_dir"] / "wandb.json").read_text())["id"]


def test_the_margin_is_what_tisdpo_caches_for_the_same_pairs(finished, tmp_path):
    """`tisdpo score` on pairs.jsonl, which has relabelled pairs the other way round, gives the same R.

    To 1e-5 of the summed log-ratios: those of a random model are tens of nats, and float32 has seven digits.
    """
    from safetensors.numpy import load_file

    options, _ = finished
    pairs = lines_of(options["run_dir"] / "round-1" / "pairs.jsonl")
    path = tmp_path / "pairs.jsonl"
    margins = np.array([pair.pop("margin") for pair in pairs])
    path.write_text("\n".join(map(json.dumps, pairs)) + "\n")
    asked = {name: value for name, value in options.items() if not name.startswith(("dlma", "sampling"))}
    asked |= {"data__train": path, "data__eval_fraction": 0, "run_dir": tmp_path / "run", "loss__name": "tisdpo"}
    asked |= {"recipe": "tisdpo", "contrast__construction": "prompts"}
    code, output = command("score", **asked)
    assert code == 0, output
    plus, minus = (
        load_file(tmp_path / "run" / "scores" / f"train-{name}.safetensors")["logps"] for name in ("plus", "minus")
    )
    scores = (plus.astype("float64") - minus).sum(-1)
    size = np.abs(plus.astype("float64") - minus).sum((-1, -2))
    assert (np.abs(scores[:, 0] - scores[:, 1] - margins) <= 1e-5 * np.maximum(size, 1.0)).all()
    assert np.abs(margins).max() > 0.1


def test_the_margin_is_what_pytorch_says(finished):
    torch = pytest.importorskip("torch", reason="parity with PyTorch: install the extra `parity`")
    import transformers

    options, _ = finished
    tokenizer = transformers.AutoTokenizer.from_pretrained(options["model__path"])
    model = transformers.AutoModelForCausalLM.from_pretrained(options["model__path"], dtype=torch.float64).eval()

    def logp(system: str, question: str, answer: str) -> float:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        ids = []
        for conversation in (turns, [*turns, {"role": "assistant", "content": answer}]):
            start = len(conversation) == 2
            text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=start)
            ids.append(
                tokenizer("<s>" + text.rstrip("\n") + ("\n" if start else ""), add_special_tokens=False).input_ids
            )
        prompt, whole = ids
        assert whole[: len(prompt)] == prompt
        with torch.inference_mode():
            logps = model(torch.tensor([whole])).logits.log_softmax(-1)[0]
        return sum(float(logps[at - 1, whole[at]]) for at in range(len(prompt), len(whole)))

    for pair in lines_of(options["run_dir"] / "round-1" / "pairs.jsonl")[:6]:
        question = pair["messages"][-1]["content"]
        sides = [
            logp("be kind", question, pair[side]) - logp("be rude", question, pair[side])
            for side in ("chosen", "rejected")
        ]
        assert sides[0] - sides[1] == pytest.approx(pair["margin"], abs=1e-3)


def test_an_adapter_answers_without_being_merged(finished, options):
    """The adapter of a run, and its export, where it is merged: greedily the same; the base says something else."""
    run, said = finished[0]["run_dir"], {}
    for name, policy in (("adapter", run / "adapter"), ("export", run / "export"), ("base", "null")):
        asked = {**options, "run_dir": options["run_dir"] / name, "sampling__policy": policy}
        assert command("generate", **{**asked, "sampling__temperature": 0, "sampling__limit": 4})[0] == 0
        said[name] = [line["ids"] for line in lines_of(options["run_dir"] / name / "responses.jsonl")]
    assert said["adapter"] == said["export"] and len(said["base"]) == 4


def test_scores_by_token_and_prompts_of_their_own_for_evaluation(options, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text('{"prompt": "who is warm"}\n')
    told = {}
    for how in ("sum", "mean"):
        run = tmp_path / how
        code, output = command(
            "score",
            **{**options, "run_dir": run, "dlma__score": how, "dlma__eval_prompts": held, "dlma__eval_fraction": 0.1},
        )
        assert code == 0 and "pairs.jsonl" in output, output
        assert not (run / "round-1" / "models").exists() and len(lines_of(run / "round-1" / "responses.jsonl")) == 20
        told[how] = json.loads((run / "round-1" / "selection.json").read_text())
    assert abs(told["mean"]["reward_mean"]) < abs(told["sum"]["reward_mean"])
    margins = [abs(pair["margin"]) for pair in lines_of(tmp_path / "mean" / "round-1" / "pairs.jsonl")]
    assert told["mean"]["reward_mean"] <= np.mean(margins)


def test_what_ends_an_answer_and_where_prompts_come_from():
    own = build(GenerateRecipe, {"sampling": {"stop": ["END", "\n\n\n"]}}, where="test")
    plain = build(GenerateRecipe, {"sampling": {"stop": ["END"]}, "data": {"template": "hh"}}, where="test")
    stops = [options_of(one.sampling, one.data.template).stop for one in (GenerateRecipe(), own, plain)]
    assert stops == [(), ("END", "\n\n\n"), ("END", "\n\nAssistant:", "\n\nHuman:")]
    train, held_out = (open_prompts(f"demo:{name}", None)[0] for name in ("prompts", "prompts-eval"))
    assert (len(train), len(held_out), len(open_prompts("demo:prompts", 3)[0])) == (80, 32, 3)
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in held_out}


def test_shipped_prompts_stand_in_for_their_name():
    config = with_prompts(build(Experiment, {"contrast": {"pair": "harmless-user"}}, where="test"))
    assert (config.contrast.positive_prompt, config.contrast.negative_prompt) == PROMPT_PAIRS["harmless-user"]
    own = build(Experiment, {"contrast": {"positive_prompt": "a", "negative_prompt": "b"}}, where="test")
    assert with_prompts(own) == own
    assert {"own", *PROMPT_PAIRS} == set(typing.get_args(PromptPair))
    assert all(positive != negative for positive, negative in PROMPT_PAIRS.values())


def test_a_kill_in_the_middle_repeats_and_loses_nothing(options):
    whole = options["run_dir"].with_name("whole")
    assert command("generate", **{**options, "run_dir": whole, "sampling__show": "plus"})[0] == 0
    path = options["run_dir"] / "responses.jsonl"
    assert command("generate", **{**options, "sampling__show": "plus"})[0] == 0
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(content[:3]) + content[3][:17])  # the fourth line was being written
    code, output = command("generate", **{**options, "sampling__show": "plus"})
    assert code == 0 and "10 answers" in output
    found, expected = ({line["id"]: line for line in lines_of(place)} for place in (path, whole / "responses.jsonl"))
    assert found == expected and len(lines_of(path)) == 10
    assert [line["id"] for line in lines_of(path)][:3] == [json.loads(line)["id"] for line in content[:3]]


def test_a_stop_on_request_keeps_what_was_answered(options, monkeypatch):
    options |= {"sampling__samples": 9, "sampling__batch_size": 64}  # two batches: 64 answers, and 26
    whole = options["run_dir"].with_name("whole")
    assert command("generate", **{**options, "run_dir": whole})[0] == 0
    polls = iter(range(10))

    def poll(self, what):
        if next(polls) == 1:
            raise Interrupted(f"{what}: stopped")

    with monkeypatch.context() as patched:
        patched.setattr(Interrupt, "poll", poll)
        code, output = command("generate", **options)
    path = options["run_dir"] / "responses.jsonl"
    assert code == 42 and "the same command goes on" in output and len(lines_of(path)) == 64
    code, output = command("generate", **options)
    assert code == 0 and "64 of 90 are there already" in output
    assert path.read_bytes() == (whole / "responses.jsonl").read_bytes()


def test_an_endpoint_answers_and_what_it_answered_is_not_asked_again(options, monkeypatch):
    monkeypatch.setenv("TISDPO_API_KEY", "sk-0123456789abcdef")
    left = [4]

    def answer(number, body):
        left[0] -= 1
        return f"said {body['messages'][-1]['content']}" if left[0] >= 0 else (500, {}, b"Bearer sk-0123456789abcdef")

    stub = Stub(answer)
    options |= {"sampling__engine": "http", "sampling__url": stub.url, "sampling__endpoint_model": "m"}
    options |= {"sampling__concurrency": 1, "sampling__retries": 0}
    path = options["run_dir"] / "responses.jsonl"
    try:
        code, output = command("generate", **options)
        assert code == 2 and "status 500: Bearer [key]" in output and len(lines_of(path)) == 4
        assert "POST" not in output  # nor does the client log every request
        left[0] = 6  # exactly what is missing
        code, output = command("generate", **options)
        assert code == 0, output
    finally:
        stub.stop()
    assert {line["response"] for line in lines_of(path)} == {f"said {text}" for text in PROMPTS}
    assert not [file for file in options["run_dir"].rglob("*") if file.is_file() and b"sk-01234" in file.read_bytes()]


@pytest.mark.slow
def test_rounds_start_from_the_policy_before(options):
    code, output = command("run", **{**options, "dlma__rounds": 2, "dlma__reference": "first"})
    assert code == 0, output
    run = options["run_dir"]
    first, second = (json.loads((run / f"round-{n}" / "responses.key.json").read_text()) for n in (1, 2))
    assert first["model"] != second["model"] and first["prompts"] == second["prompts"]
    (scores_1, scores_2) = ((run / f"round-{n}" / "scores") for n in (1, 2))
    assert (scores_1 / "train-plus.safetensors").is_file() and (scores_2 / "train-plus.safetensors").is_file()
    moved = {**options, "dlma__rounds": 2, "dlma__reference": "previous"}
    code, output = command("train", **moved)
    assert (
        code == 2 and "was made with another configuration" in output
    )  # the reference's scores belong to another model


def test_answers_of_others_come_as_a_file(options):
    options |= {"sampling__engine": "files"}
    run = options["run_dir"]
    code, output = command("score", **options)
    asked = lines_of(run / "round-1" / "prompts.jsonl")
    assert code == 2 and f"answer the {len(asked)} prompts" in output and len(asked) == 16
    assert {message["role"] for message in asked[0]["messages"]} == {"system", "user"}
    path = run / "round-1" / "responses.jsonl"
    words = {"plus": "my friend is warm", "minus": "the dog hides"}
    rows = [{"id": row["id"], "response": f"{words[row['id'].split('/')[1]]} {row['id'][1]}"} for row in asked]
    path.write_text("\n".join(map(json.dumps, rows[:-1])) + "\n")
    code, output = command("score", **options)
    assert code == 2 and "1 of 16 responses are missing" in output
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    code, output = command("score", **options)
    assert code == 0, output
    assert "8 train" in output
    pairs = lines_of(run / "round-1" / "pairs.jsonl")
    assert {"my friend", "the dog h"} >= {str(pair["chosen"])[:9] for pair in pairs}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sampling__prompts": "null"}, "sampling.prompts is not set"),
        ({"contrast__construction": "dpo"}, "unknown field contrast.construction for recipe dlma"),
        ({"loss__name": "sft"}, "loss.name is 'sft'; it must be one of"),
        ({"sampling__engine": "http"}, "sampling.engine http needs sampling.url"),
        ({"dlma__rounds": 2, "sampling__engine": "files"}, "from the second round on the trained policy answers"),
        ({"data__train": "pairs.jsonl"}, "unknown field data.train for recipe dlma"),
        ({"dlma__tie_band": 1e6}, "no pair is left to train on"),
    ],
)
def test_mistakes_are_named(options, changed, told):
    code, output = command("run", **{**options, **changed})
    assert code == 2 and told in output, output


def test_show_says_of_every_round_what_is_there_and_what_is_stale(finished):
    options, _ = finished
    code, output = command("show", **options)
    states = {line.split("  ")[0]: " there " in line for line in output.splitlines() if line.startswith("round-1")}
    stages = ("responses", "scores train-plus", "scores train-minus", "pairs", "policy")
    assert code == 0 and states == {f"round-1 {stage}": True for stage in stages}, output
    code, output = command("show", **{**options, "dlma__tie_band": 0.25})
    lines = [line for line in output.splitlines() if line.startswith("round-1 pairs")]
    assert code == 0 and " stale " in lines[0] and "dlma.tie_band (was 0.0, now 0.25)" in lines[0]
    code, output = command("run", **{**options, "dlma__tie_band": 0.25})
    assert code == 2 and "dlma.tie_band (was 0.0, now 0.25)" in output, "refused before anything is answered or trained"


def test_pairs_that_nothing_was_trained_on_may_be_selected_anew(finished, tmp_path, monkeypatch):
    """`tisdpo score` again with another filter, and back: by a relative path, as a user looks at the pairs."""
    options, _ = finished
    shutil.copytree(options["run_dir"], tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for name in ("models", "checkpoints"):
        shutil.rmtree(tmp_path / "run" / "round-1" / name)
    before = (tmp_path / "run" / "round-1" / "pairs.jsonl").read_bytes()
    for band in (1e9, 0.0):
        code, output = command("score", **{**options, "run_dir": "run", "dlma__tie_band": band})
        assert (code, "no pair is left" in output) == ((2, True) if band else (0, False)), output
    assert (tmp_path / "run" / "round-1" / "pairs.jsonl").read_bytes() == before
