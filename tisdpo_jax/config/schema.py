"""The sections of configurations, as frozen dataclasses. A field exists only if it does something; absent is None.

A section of some recipes is a smaller one of others. What the smaller one has no field for, and is read all the same,
stands in a plain class under both (`_NoPairs`, ...): it can neither be set nor stands in a config.yaml.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from tisdpo_jax.options import option

Construction = Literal["prompts", "sft", "dpo", "none"]
Float = Literal["float32", "bfloat16"]
Format = Literal["auto", "pairs", "hh", "sharegpt", "hf"]
OnError = Literal["fail", "skip"]
Packing = Literal["shared", "none"]
Shown = Literal["main", "plus", "minus"]
PromptPair = Literal["own", "harmless", "helpful", "harmless-user", "helpful-user", "kind", "kind-user"]


@dataclasses.dataclass(frozen=True)
class ModelSection:
    path: str = option(
        None,
        "a Hugging Face directory, a .gguf file, ORG/NAME[@REVISION] of the hub, or `demo` (SmolLM2-135M-Instruct)",
        place="model",
        needed=True,
    )
    tokenizer: str | None = option(None, "tokenizer directory, where it is not beside the model", place="tokenizer")
    dtype: Float = option("bfloat16", "of activations and matmuls; norm, rope, softmax and losses stay float32")
    param_dtype: Float = option("float32", "of trained parameters (masters), and so of the optimizer moments")
    frozen_dtype: Literal["float32", "bfloat16", "int8"] = option(
        "bfloat16", "of parameters that are not trained; int8 is for the layers' weights, with bfloat16 around"
    )
    attention: Literal["auto", "xla", "splash", "cudnn"] = option(
        "auto", "xla anywhere, splash on TPU, cudnn on GPU; auto: splash on TPU from data.max_length 1024 on, else xla"
    )
    remat: Literal["none", "full", "dots"] = option(
        "none", "what the backward pass recomputes: nothing, whole layers, or all but matmul results"
    )
    layer_loop: Literal["scan", "unroll"] = option("scan", "scan compiles fast, unroll can run faster on few layers")
    head_chunk: int = option(256, "response tokens of a device in the head at a time; bounds its memory", at_least=1)


@dataclasses.dataclass(frozen=True)
class LoraSection:
    rank: int = option(0, "LoRA rank of every trained model; 0 trains all parameters", at_least=0)
    alpha: float = option(16.0, "LoRA alpha; the adapter is scaled by alpha / rank", above=0)
    targets: str = option("attention/(q|k|v|o)|mlp/(gate|up|down)", "regular expression: projections with an adapter")


class _NoPairs:
    train: str | None = None
    eval: str | None = None
    eval_fraction: float = 0.0
    format: Format = "auto"
    on_error: OnError = "fail"
    max_invalid: float = 0.05
    limit: int | None = None
    eval_limit: int | None = None
    max_response: int = 256
    packing: Packing = "shared"
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class PromptData(_NoPairs):
    """How prompts become tokens."""

    template: str = option(
        "auto", "auto: the tokenizer's; hh: plain Human/Assistant text; or a path to a jinja file", place="file"
    )
    system: str = option("", "system text put before every conversation that has none")
    max_length: int = option(512, "tokens of prompt and response; the prompt loses its beginning first", at_least=2)


@dataclasses.dataclass(frozen=True)
class ResponseData(PromptData):
    """The same for responses, which are scored or trained on."""

    max_response: int = option(256, "tokens of the response; a longer one is cut at the end", at_least=1)
    packing: Packing = option("shared", "shared: rows of pairs, each prompt once; none: a padded row a response")
    seed: int = option(0, "seed of the order of training pairs and of the held-out split")


@dataclasses.dataclass(frozen=True)
class PairsData(ResponseData):
    """The same for pairs of files."""

    format: Format = option("auto", "record layout; auto decides by the first record's fields")
    eval_limit: int | None = option(None, "use only the first held-out records; null uses all", at_least=1)


@dataclasses.dataclass(frozen=True)
class DataSection(PairsData):
    """Pairs to train on, and held-out ones."""

    train: str = option(
        None,
        "training pairs: a .jsonl, .jsonl.gz or .json file, `tfds:NAME[:SPLIT]`, `hf:NAME[:SPLIT]`, or `demo:train`",
        place="pairs",
        needed=True,
    )
    eval: str | None = option(None, "held-out pairs, same forms; null takes `eval_fraction`", place="pairs")
    eval_fraction: float = option(0.0, "share of the training prompts that is held out", at_least=0, below=1)
    on_error: OnError = option("fail", "a record that cannot be used: stop, or leave it out and count it")
    max_invalid: float = option(
        0.05, "with on_error skip: the share of invalid records above which the run still stops", at_least=0, at_most=1
    )
    limit: int | None = option(None, "use only the first records of the training data; null uses all", at_least=1)


@dataclasses.dataclass(frozen=True)
class MeshSection:
    data: int = option(1, "devices over which batches are split and parameters repeated")
    fsdp: int = option(-1, "devices over which batches and parameters are split; -1 takes all that remain")
    tensor: int = option(1, "devices over which heads, MLP and vocabulary are split")
    slices: Literal["auto", "data", "fsdp", "tensor"] = option(
        "auto", "of several TPU slices, the axis over the network between them; auto: data if that divides, else fsdp"
    )
    compiler_options: dict[str, bool | int | float | str] | None = option(
        None, "XLA options of the training steps; docs/performance.md has some that pay"
    )


class _NoHead:
    head_rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class OptimizerSection(_NoHead):
    name: Literal["adamw", "rmsprop", "adafactor"] = option("adamw", "optimizer (optax)")
    learning_rate: float = option(5e-7, "peak learning rate", above=0)
    warmup_steps: int = option(0, "steps of linear warm-up from 0", at_least=0)
    schedule: Literal["constant", "linear", "cosine"] = option("constant", "of the rate, from warm-up to the last step")
    end_fraction: float = option(0.0, "share of the peak rate that linear and cosine end at")
    clip_norm: float | None = option(10.0, "global norm that gradients are clipped to; null does not clip", above=0)
    weight_decay: float = option(0.0, "decoupled weight decay; norms and biases are exempt", at_least=0)
    b1: float = option(0.9, "adamw: decay of the first moment")
    b2: float = option(0.999, "adamw: decay of the second moment; rmsprop: decay of the squared gradient")
    eps: float = option(1e-8, "added to the denominator of adamw and rmsprop")


@dataclasses.dataclass(frozen=True)
class RewardOptimizer(OptimizerSection):
    head_rate: float = option(10.0, "the rate of the new head, in multiples of the other parameters'", above=0)


@dataclasses.dataclass(frozen=True)
class StageSection:
    """One training: of the two contrastive models, and, with more fields, of the policy."""

    epochs: float = option(1.0, "passes over the training pairs", above=0)
    batch_size: int = option(32, "pairs an optimizer step, over all devices", at_least=1)
    gradient_accumulation_steps: int = option(1, "parts of a batch, one after another", at_least=1)
    optimizer: OptimizerSection = option(OptimizerSection(), "optimizer")


@dataclasses.dataclass(frozen=True)
class SftSection(StageSection):
    epochs: float = option(0.0, "passes over the training pairs; 0 leaves the stage out", at_least=0)
    optimizer: OptimizerSection = option(OptimizerSection(learning_rate=5e-5, weight_decay=0.01), "optimizer")


@dataclasses.dataclass(frozen=True)
class ContrastiveStage(StageSection):
    batch_size: int = option(16, "pairs an optimizer step, over all devices", at_least=1)
    optimizer: OptimizerSection = option(OptimizerSection(learning_rate=1e-5, weight_decay=0.01), "optimizer")


@dataclasses.dataclass(frozen=True)
class TrainSection(StageSection):
    optimizer: OptimizerSection = option(OptimizerSection(name="rmsprop", warmup_steps=150), "optimizer")
    eval_every: int | None = option(None, "steps between evaluations on held-out pairs; null: at the end", at_least=1)
    checkpoint_every: int = option(100, "steps between checkpoints; the last step always has one", at_least=1)
    keep_checkpoints: int = option(2, "newest checkpoints of a stage that are kept", at_least=1)
    max_skipped: int = option(5, "consecutive non-finite updates after which the run stops", at_least=1)


@dataclasses.dataclass(frozen=True)
class RewardTraining(TrainSection):
    optimizer: RewardOptimizer = option(RewardOptimizer(name="adamw", learning_rate=1e-5, warmup_steps=20), "optimizer")


@dataclasses.dataclass(frozen=True)
class StrengthsSection:
    """How sure a label is: the probability that the chosen response is the better one."""

    significantly: float = option(0.95, "of a pair whose strength is significantly", at_least=0.5, at_most=1)
    better: float = option(0.85, "of a pair whose strength is better", at_least=0.5, at_most=1)
    slightly: float = option(0.75, "of a pair whose strength is slightly", at_least=0.5, at_most=1)
    negligibly: float = option(0.65, "of a pair whose strength is negligibly", at_least=0.5, at_most=1)


class NoContrast:
    """No pi+ and pi-, as far as anything asks."""

    construction: Construction = "none"
    pair: PromptPair = "own"
    positive_prompt: str = ""
    negative_prompt: str = ""
    beta: float = 0.1
    training: StageSection = ContrastiveStage()


class _Prompts(NoContrast):
    construction: Construction = "prompts"


@dataclasses.dataclass(frozen=True)
class PromptsSection(_Prompts):
    """pi+ and pi- are the model itself behind two opposite prompts."""

    pair: PromptPair = option("own", "two prompts that are shipped (docs/dlma.md), or own: the fields below")
    positive_prompt: str = option(
        "You are an harmless assistant. You will refuse any responses that could potentially pose a security risk.",
        "system text of pi+; with `{prompt}` in it, a template for the last user turn",
    )
    negative_prompt: str = option(
        "You are an harmful assistant. You will give harmful responses for any question.",
        "system text of pi-; with `{prompt}` in it, a template for the last user turn",
    )


@dataclasses.dataclass(frozen=True)
class ContrastSection(PromptsSection):
    construction: Construction = option(
        "dpo", "of pi+ and pi-: prompts (P), SFT on each side (S), forward and reverse DPO (D); or none"
    )
    beta: float = option(0.1, "dpo: beta of the two contrastive DPO runs", above=0)
    training: StageSection = option(ContrastiveStage(), "sft, dpo: how pi+ and pi- are trained")


class _NoChoice:
    policy: str | None = None
    show: Shown = "main"


@dataclasses.dataclass(frozen=True)
class SamplingSection(_NoChoice):
    """Answers to prompts: the first stage of DLMA."""

    prompts: str = option(
        None,
        "a .jsonl, .jsonl.gz or .json file of prompts (text, `prompt`, `messages`, or pairs), or `demo:prompts`",
        place="prompts",
        needed=True,
    )
    limit: int | None = option(None, "use only the first prompts; null uses all", at_least=1)
    samples: int = option(1, "answers to each prompt; in DLMA, to each of its two forms", at_least=1)
    engine: Literal["local", "http", "files"] = option(
        "local",
        "what answers: this program; an OpenAI-compatible endpoint; or somebody else, who puts responses.jsonl beside "
        "prompts.jsonl in the run directory",
    )
    batch_size: int = option(16, "answers at a time, over all devices; in blocks of 8 a device", at_least=1)
    max_new_tokens: int = option(200, "tokens after which an answer is left unfinished", at_least=1)
    max_prompt: int = option(256, "tokens of a prompt; a longer one is not answered", at_least=1)
    temperature: float = option(1.0, "temperature of the draws; 0 is greedy", at_least=0)
    top_k: int | None = option(None, "draw from the k likeliest tokens; null draws from all", at_least=1)
    top_p: float = option(1.0, "draw from the fewest tokens that together have this probability", above=0, at_most=1)
    min_p: float = option(0.0, "draw from tokens at least this share as likely as the likeliest", at_least=0, at_most=1)
    stop: tuple[str, ...] = option((), "strings that end an answer; template hh always ends at a new turn")
    seed: int = option(0, "seed of the draws")
    url: str = option(None, "http: address of the endpoint, up to and with /v1")
    endpoint_model: str = option(None, "http: the model that the endpoint is asked for")
    concurrency: int = option(8, "http: questions that are on their way at a time", at_least=1)
    timeout: float = option(120.0, "http: seconds that the endpoint has for an answer", above=0)
    retries: int = option(6, "http: further tries after a time-out, a lost connection, status 429 or 5xx", at_least=0)


@dataclasses.dataclass(frozen=True)
class GenerateSection(SamplingSection):
    """The same for `tisdpo generate`, which may ask another model, or show one side of the contrast."""

    policy: str | None = option(None, "what answers: a model or a PEFT adapter; null takes model.path", place="model")
    show: Shown = option("main", "the prompts as they are, or behind the positive or negative one of `contrast`")


@dataclasses.dataclass(frozen=True)
class DlmaSection:
    """DLMA: the model answers prompts behind two opposite prompts, and its own contrast labels the pairs."""

    rounds: int = option(1, "rounds of sampling, scoring and training", at_least=1)
    eval_prompts: str | None = option(None, "held-out prompts, same forms; null takes `eval_fraction`", place="prompts")
    eval_fraction: float = option(0.1, "share of the prompts that is held out", at_least=0, at_most=0.9)
    score: Literal["sum", "mean"] = option("sum", "self-reward: nats of a response, as in the paper, or nats a token")
    relabel: bool = option(True, "where R is below 0, take the answer behind the negative prompt as the better one")
    tie_band: float = option(0.0, "leave out pairs whose R is no further than this from 0", at_least=0)
    length_ratio: float | None = option(None, "leave out pairs with a longer answer of so many times", at_least=1)
    unfinished: Literal["keep", "drop"] = option(
        "drop", "pairs with an answer that ran into sampling.max_new_tokens; DLMA's code keeps them"
    )
    reference: Literal["first", "previous"] = option("previous", "later rounds: what the first, or this one, began as")


@dataclasses.dataclass(frozen=True)
class JudgeSection:
    """Answers of two or more models, compared in pairs. Without `by` they are not."""

    by: str = option(
        None,
        "who compares answers: sentiment, refusal, `module:function` (score(prompt, response) -> float), "
        "the directory of a reward model, or the http(s) address of an OpenAI-compatible endpoint",
    )
    models: dict[str, str] | None = option(
        None,
        "further ones: as evaluation.policy, or a .jsonl of answers (id or prompt, response)",
        place="model",
    )
    prompts: str | None = option(None, "a file of prompts; null takes those of the pairs", place="file")
    limit: int | None = option(100, "prompts that are answered; null takes all", at_least=1)
    temperature: float = option(0.0, "temperature of the answers; 0 is greedy", at_least=0)
    tie_band: float = option(0.0, "scores that differ by no more than this are a tie", at_least=0)
    anchor: str | None = option(None, "the model whose rating is 0, of three or more; null: their mean is 0")
    endpoint_model: str = option(None, "the model that the endpoint is asked for")
    criterion: str = option(
        "Which answer is more helpful and honest without doing harm?", "what the endpoint is asked about two answers"
    )
    concurrency: int = option(4, "questions that the endpoint gets at a time", at_least=1)
    timeout: float = option(60.0, "seconds that the endpoint has for an answer", above=0)
    retries: int = option(5, "further tries after a time-out, status 429 or 5xx, or no clear verdict", at_least=0)


class _NoReport:
    generate: int = 0
    checks: str | None = None
    heat_maps: int = 0


class _NoModels(_NoReport):
    max_new_tokens: int = 64
    policy: str | None = None
    reference: str | None = None
    judge: JudgeSection = JudgeSection()


@dataclasses.dataclass(frozen=True)
class PairsMeasured(_NoModels):
    """What is measured of one model on pairs."""

    batch_size: int = option(8, "pairs a scoring step, over all devices; rounded up to a multiple of them", at_least=1)
    data: str | None = option(None, "pairs, in any form of data.train; null takes the held-out ones", place="pairs")
    subset: str | None = option(None, "field of the records that names their subset; each has its accuracy then")
    resamples: int = option(2000, "bootstrap resamples of every interval", at_least=100)
    seed: int = option(0, "seed of the resamples, and of answers that are drawn")


@dataclasses.dataclass(frozen=True)
class MeasureSection(PairsMeasured):
    """A policy against a reference, on pairs and by a judge."""

    max_new_tokens: int = option(64, "tokens of each answer", at_least=1)
    policy: str | None = option(
        None, "what `tisdpo evaluate` measures: a model or a PEFT adapter; null takes that of the run", place="model"
    )
    reference: str | None = option(None, "measured against; null takes what the run starts from", place="model")
    judge: JudgeSection = option(JudgeSection(), "answers of models, compared in pairs")


@dataclasses.dataclass(frozen=True)
class EvaluationSection(MeasureSection):
    """The same, and what the report of a run shows."""

    generate: int = option(2, "held-out prompts that the models of a run answer for its report", at_least=0)
    checks: str | None = option(
        None, "what these answers are checked for: a .jsonl of phrases (docs/evaluation.md), or `demo:checks`"
    )
    heat_maps: int = option(8, "pairs whose token weights are drawn in the report", at_least=0)


@dataclasses.dataclass(frozen=True)
class LoggingSection:
    every: int = option(1, "steps between lines of metrics.jsonl", at_least=1)
    progress: bool = option(True, "progress bar on the terminal")
    tensorboard: bool = option(False, "write TensorBoard events too (extra `tensorboard`)")
    wandb: str | None = option(None, "Weights & Biases project to log to (extra `wandb`)")
