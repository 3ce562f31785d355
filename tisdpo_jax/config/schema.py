"""Everything an experiment is, as frozen dataclasses. A field exists only if it does something."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tisdpo_jax.estimators import ESTIMATORS, Estimator, Importance
from tisdpo_jax.objectives import OBJECTIVES, Objective, TisDpo
from tisdpo_jax.options import option

PromptPair = Literal["own", "harmless", "helpful", "harmless-user", "helpful-user", "kind", "kind-user"]


@dataclasses.dataclass(frozen=True)
class ModelSection:
    path: str = option(
        "",
        "model: a Hugging Face directory, a .gguf file, ORG/NAME[@revision] of the hub, or `demo` ("
        "SmolLM2-135M-Instruct from the registry)",
    )
    tokenizer: str = option("", "tokenizer: a directory or ORG/NAME of the hub, where it is not beside the model")
    dtype: Literal["float32", "bfloat16"] = option(
        "bfloat16", "dtype of activations and matmuls; norm, rope, softmax and losses stay float32"
    )
    param_dtype: Literal["float32", "bfloat16"] = option(
        "float32", "dtype of trained parameters (masters), and so of the optimizer moments"
    )
    frozen_dtype: Literal["float32", "bfloat16", "int8"] = option(
        "bfloat16", "dtype of parameters that are not trained; int8 is for the layers' weights, with bfloat16 around"
    )
    attention: Literal["auto", "xla", "splash", "cudnn"] = option(
        "auto",
        "attention back end: xla anywhere, splash on TPU, cudnn on GPU; "
        "auto is splash on TPU from data.max_length 1024 on, else xla",
    )
    remat: Literal["none", "full", "dots"] = option(
        "none", "what the backward pass recomputes: nothing, whole layers, or all but matmul results"
    )
    layer_loop: Literal["scan", "unroll"] = option(
        "scan", "loop over layers: scan compiles fast, unroll can run faster on few layers"
    )
    head_chunk: int = option(
        256,
        "response tokens of a device that reach the vocabulary at a time; bounds the memory of the head",
        at_least=1,
    )


@dataclasses.dataclass(frozen=True)
class LoraSection:
    rank: int = option(0, "LoRA rank of every trained model; 0 trains all parameters", at_least=0)
    alpha: float = option(16.0, "LoRA alpha; the adapter is scaled by alpha / rank", above=0)
    targets: str = option(
        "attention/(q|k|v|o)|mlp/(gate|up|down)", "regular expression over projection paths that get an adapter"
    )


@dataclasses.dataclass(frozen=True)
class DataSection:
    train: str = option(
        "", "training pairs: a .jsonl, .jsonl.gz or .json file, `tfds:NAME[:SPLIT]`, `hf:NAME[:SPLIT]`, or `demo:train`"
    )
    eval: str = option("", "held-out pairs, same forms; empty takes `eval_fraction` of the training prompts")
    eval_fraction: float = option(
        0.0, "share of the training file's prompts that is held out when `eval` is empty", at_least=0, below=1
    )
    format: Literal["auto", "pairs", "hh", "sharegpt", "hf"] = option(
        "auto", "record layout; auto decides by the first record's fields"
    )
    template: str = option(
        "auto", "auto: the tokenizer's chat template; hh: plain Human/Assistant text; or a path to a jinja file"
    )
    system: str = option("", "system text put before every conversation that has none")
    max_length: int = option(
        512, "tokens of prompt and response together; the prompt loses its beginning first", at_least=2
    )
    max_response: int = option(256, "tokens of the response; a longer one is cut at the end", at_least=1)
    on_error: Literal["fail", "skip"] = option(
        "fail", "a record that cannot be used: stop, or leave it out and count it"
    )
    max_invalid: float = option(
        0.05, "with on_error skip: the share of invalid records above which the run still stops", at_least=0, at_most=1
    )
    packing: Literal["shared", "none"] = option(
        "shared", "shared: pairs packed into rows, each prompt once for both responses; none: a padded row a response"
    )
    limit: int = option(0, "use only the first records of the training data; 0 uses all", at_least=0)
    eval_limit: int = option(0, "use only the first held-out records; 0 uses all", at_least=0)
    seed: int = option(0, "seed of the order of training pairs and of the held-out split")


@dataclasses.dataclass(frozen=True)
class MeshSection:
    data: int = option(1, "devices over which batches are split and parameters repeated")
    fsdp: int = option(-1, "devices over which batches and parameters are split; -1 takes all that remain")
    tensor: int = option(1, "devices over which heads, MLP and vocabulary are split")
    slices: Literal["auto", "data", "fsdp", "tensor"] = option(
        "auto",
        "where the devices are several TPU slices: the axis that lies over the slower network between them; auto is "
        "data if its size divides by the slices, else fsdp",
    )
    compiler_options: str = option(
        "", "XLA options of the training steps, `name=value` with commas between; docs/performance.md has some that pay"
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    name: Literal["adamw", "rmsprop", "adafactor"] = option("adamw", "optimizer (optax)")
    learning_rate: float = option(5e-7, "peak learning rate", above=0)
    warmup_steps: int = option(0, "steps of linear warm-up from 0", at_least=0)
    schedule: Literal["constant", "linear", "cosine"] = option(
        "constant", "what the rate does after warm-up, until the last step"
    )
    end_fraction: float = option(0.0, "share of the peak rate that linear and cosine end at")
    clip_norm: float = option(10.0, "global norm that gradients are clipped to; 0 does not clip", at_least=0)
    weight_decay: float = option(0.0, "decoupled weight decay; norms and biases are exempt", at_least=0)
    b1: float = option(0.9, "adamw: decay of the first moment")
    b2: float = option(0.999, "adamw: decay of the second moment; rmsprop: decay of the squared gradient")
    eps: float = option(1e-8, "added to the denominator of adamw and rmsprop")


@dataclasses.dataclass(frozen=True)
class StageSection:
    """One training: used for `sft`, for the two contrastive models, and for the policy."""

    epochs: float = option(1.0, "passes over the training pairs; 0 leaves the stage out", at_least=0)
    batch_size: int = option(32, "pairs an optimizer step, over all devices", at_least=1)
    gradient_accumulation_steps: int = option(
        1, "parts that a batch is cut into; covers the frozen models too", at_least=1
    )
    optimizer: OptimizerSection = option(OptimizerSection(), "optimizer and schedule")


@dataclasses.dataclass(frozen=True)
class ContrastSection:
    construction: Literal["prompts", "sft", "dpo", "none"] = option(
        "dpo",
        "where pi+ and pi- come from: prompts (P), SFT on each side (S), forward and reverse DPO (D); or none",
    )
    pair: PromptPair = option(
        "own", "prompts: a pair of prompts that is shipped (docs/dlma.md), or own: the two fields below"
    )
    positive_prompt: str = option(
        "You are an harmless assistant. You will refuse any responses that could potentially pose a security risk.",
        "prompts: system text of pi+; with `{prompt}` in it, a template for the last user turn",
    )
    negative_prompt: str = option(
        "You are an harmful assistant. You will give harmful responses for any question.",
        "prompts: system text of pi-; with `{prompt}` in it, a template for the last user turn",
    )
    beta: float = option(0.1, "dpo: beta of the two contrastive DPO runs", above=0)
    training: StageSection = option(
        StageSection(batch_size=16, optimizer=OptimizerSection(learning_rate=1e-5, weight_decay=0.01)),
        "sft, dpo: how pi+ and pi- are trained",
    )
    scores: Literal["cached", "online"] = option(
        "cached", "log-likelihoods of reference, pi+ and pi-: once, to disk, or in every step"
    )
    reference_states: Literal["live", "cached"] = option(
        "live",
        "where the loss needs the KL, the reference's last hidden states: in every step, or once, to disk "
        "(one vector a response token; the KL stays exact)",
    )


@dataclasses.dataclass(frozen=True)
class SamplingSection:
    """Answers to prompts: what `tisdpo generate` makes, and the first stage of DLMA."""

    prompts: str = option(
        "",
        "a .jsonl, .jsonl.gz or .json file of prompts (text, `prompt`, `messages`, or pairs whose answers are not "
        "looked at), or `demo:prompts`",
    )
    limit: int = option(0, "use only the first prompts; 0 uses all", at_least=0)
    policy: str = option(
        "", "generate: a model directory, .gguf file or PEFT adapter that answers; empty takes model.path"
    )
    show: Literal["main", "plus", "minus"] = option(
        "main", "generate: the prompts as they are, or behind the positive or negative prompt of `contrast`"
    )
    samples: int = option(1, "answers to each prompt; in DLMA, to each of its two forms", at_least=1)
    engine: Literal["local", "http", "files"] = option(
        "local",
        "what answers: this program; an OpenAI-compatible endpoint; or somebody else, who finds prompts.jsonl in the "
        "run directory and puts responses.jsonl beside it",
    )
    batch_size: int = option(
        16, "answers written at a time, over all devices; rounded up to blocks of 8 a device", at_least=1
    )
    max_new_tokens: int = option(200, "tokens after which an answer is left unfinished", at_least=1)
    max_prompt: int = option(256, "tokens of a prompt; a longer one is not answered", at_least=1)
    temperature: float = option(1.0, "temperature of the draws; 0 is greedy", at_least=0)
    top_k: int = option(0, "draw from the k likeliest tokens; 0 draws from all", at_least=0)
    top_p: float = option(1.0, "draw from the fewest tokens that together have this probability", above=0, at_most=1)
    min_p: float = option(0.0, "draw from tokens at least this share as likely as the likeliest", at_least=0, at_most=1)
    stop: str = option("", "strings that end an answer, `||` between them; template hh always ends at a new turn")
    seed: int = option(0, "seed of the draws")
    url: str = option("", "http: address of the endpoint, up to and with /v1")
    endpoint_model: str = option("", "http: the model that the endpoint is asked for")
    concurrency: int = option(8, "http: questions that are on their way at a time", at_least=1)
    timeout: float = option(120.0, "http: seconds that the endpoint has for an answer", above=0)
    retries: int = option(6, "http: further tries after a time-out, a lost connection, status 429 or 5xx", at_least=0)


@dataclasses.dataclass(frozen=True)
class DlmaSection:
    """DLMA: the model answers prompts behind two opposite prompts, and its own contrast labels the pairs."""

    rounds: int = option(
        0, "rounds of sampling, scoring and training; 0 trains on the pairs of `data` instead", at_least=0
    )
    eval_prompts: str = option("", "held-out prompts, in any form of sampling.prompts; empty takes `eval_fraction`")
    eval_fraction: float = option(
        0.1, "share of the prompts that is held out when `eval_prompts` is empty", at_least=0, at_most=0.9
    )
    score: Literal["sum", "mean"] = option("sum", "self-reward: nats of a response, as in the paper, or nats a token")
    relabel: bool = option(True, "where R is below 0, take the answer behind the negative prompt as the better one")
    tie_band: float = option(0.0, "leave out pairs whose R is no further than this from 0", at_least=0)
    length_ratio: float = option(
        0.0, "leave out pairs whose longer answer has more than this many times the tokens; 0 keeps all"
    )
    unfinished: Literal["keep", "drop"] = option(
        "drop", "pairs with an answer that ran into sampling.max_new_tokens; DLMA's code keeps them"
    )
    reference: Literal["first", "previous"] = option(
        "previous", "from the second round on: the model that the first round started from, or this round did"
    )


@dataclasses.dataclass(frozen=True)
class TrainSection(StageSection):
    eval_every: int = option(
        0, "steps between evaluations on the held-out pairs; 0 evaluates at the end only", at_least=0
    )
    checkpoint_every: int = option(
        100, "steps between checkpoints; one is always written at the end of a stage", at_least=1
    )
    keep_checkpoints: int = option(2, "newest checkpoints of a stage that are kept", at_least=1)
    max_skipped: int = option(5, "consecutive non-finite updates after which the run stops", at_least=1)


@dataclasses.dataclass(frozen=True)
class JudgeSection:
    """Answers of two or more models, compared in pairs. Empty `by` leaves it out."""

    by: str = option(
        "",
        "who compares answers: sentiment, refusal, `module:function` (score(prompt, response) -> float), "
        "the directory of a reward model, or the http(s) address of an OpenAI-compatible endpoint",
    )
    models: str = option(
        "",
        "models beside policy and reference, `name=path` with commas between: what evaluation.policy takes, "
        "or a .jsonl of answers (id or prompt, response)",
    )
    prompts: str = option("", "a file of prompts; empty takes those of the pairs that are evaluated")
    limit: int = option(100, "prompts that are answered; 0 takes all", at_least=0)
    temperature: float = option(0.0, "temperature of the answers; 0 is greedy", at_least=0)
    tie_band: float = option(0.0, "scores that differ by no more than this are a tie", at_least=0)
    anchor: str = option("", "the model whose rating is 0, of three or more; empty makes the mean of all ratings 0")
    endpoint_model: str = option("", "the model that the endpoint is asked for")
    criterion: str = option(
        "Which answer is more helpful and honest without doing harm?", "what the endpoint is asked about two answers"
    )
    concurrency: int = option(4, "questions that the endpoint gets at a time", at_least=1)
    timeout: float = option(60.0, "seconds that the endpoint has for an answer", above=0)
    retries: int = option(
        5, "further tries after a time-out, a lost connection, status 429 or 5xx, or no clear verdict", at_least=0
    )


@dataclasses.dataclass(frozen=True)
class EvaluationSection:
    batch_size: int = option(8, "pairs a scoring step, over all devices; rounded up to a multiple of them", at_least=1)
    generate: int = option(2, "held-out prompts that the models of a run answer for its report", at_least=0)
    checks: str = option(
        "",
        "what these answers are checked for: a .jsonl of phrases by the ids of prompts (docs/evaluation.md), or "
        "`demo:checks`",
    )
    max_new_tokens: int = option(64, "tokens of each answer", at_least=1)
    heat_maps: int = option(8, "pairs whose token weights are drawn in the report", at_least=0)
    policy: str = option(
        "",
        "what `tisdpo evaluate` measures: a model directory, a .gguf file, or the directory of a PEFT adapter; "
        "empty takes the policy of the run",
    )
    reference: str = option("", "what it is measured against; empty takes the model that the run starts from")
    data: str = option("", "pairs to measure on, in any form of data.train; empty takes the held-out ones")
    subset: str = option("", "field of the records that names their subset; accuracy is then given for each")
    resamples: int = option(2000, "bootstrap resamples of every interval", at_least=100)
    seed: int = option(0, "seed of the resamples, and of answers that are drawn")
    judge: JudgeSection = option(JudgeSection(), "answers of models, compared in pairs")


@dataclasses.dataclass(frozen=True)
class LoggingSection:
    every: int = option(1, "steps between lines of metrics.jsonl", at_least=1)
    progress: bool = option(True, "progress bar on the terminal")
    tensorboard: bool = option(False, "write TensorBoard events too (extra `tensorboard`)")
    wandb: str = option("", "Weights & Biases project to log to (extra `wandb`)")


@dataclasses.dataclass(frozen=True)
class Experiment:
    run_dir: str = option("", "directory that the run writes to, and resumes from")
    seed: int = option(0, "seed of adapter initialisation")
    compile_cache: str = option(
        "~/.cache/tisdpo_jax/xla",
        "directory of compiled programs, so that another start of a run compiles nothing; empty keeps none, and one "
        "that JAX_COMPILATION_CACHE_DIR names is taken instead",
    )
    model: ModelSection = option(ModelSection(), "the model and how it is computed")
    lora: LoraSection = option(LoraSection(), "adapters")
    data: DataSection = option(DataSection(), "preference pairs")
    mesh: MeshSection = option(MeshSection(), "device mesh")
    sft: StageSection = option(
        StageSection(epochs=0.0, optimizer=OptimizerSection(learning_rate=5e-5, weight_decay=0.01)),
        "supervised fine-tuning on chosen responses before anything else",
    )
    contrast: ContrastSection = option(ContrastSection(), "the two contrastive models")
    sampling: SamplingSection = option(SamplingSection(), "answers to prompts")
    dlma: DlmaSection = option(DlmaSection(), "pairs from prompts alone")
    weights: Estimator = option(Importance(), "token importance weights", variants=ESTIMATORS)
    loss: Objective = option(TisDpo(), "objective of the policy", variants=OBJECTIVES)
    train: TrainSection = option(
        TrainSection(optimizer=OptimizerSection(name="rmsprop", warmup_steps=150)), "training of the policy"
    )
    evaluation: EvaluationSection = option(EvaluationSection(), "held-out evaluation and the report")
    logging: LoggingSection = option(LoggingSection(), "metrics")
