"""Everything an experiment is, as frozen dataclasses. A field exists only if it does something."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

LossName = Literal["tisdpo", "dpo", "ipo", "tdpo", "kto", "dlma", "dlma+tisdpo", "sft"]
PromptPair = Literal["own", "harmless", "helpful", "harmless-user", "helpful-user", "kind", "kind-user"]
WeightMethod = Literal[
    "importance",
    "uniform",
    "log_uniform",
    "shuffled",
    "position",
    "rank",
    "binary",
    "rank_based",
    "threshold_and_scale",
    "threshold",
    "origin",
    "random",
]


def field(default: Any, doc: str) -> Any:
    """A config field: its default and the line that `tisdpo run --help` prints for it."""
    return dataclasses.field(default=default, metadata={"doc": doc})


@dataclasses.dataclass(frozen=True)
class ModelSection:
    path: str = field(
        "", "model: a Hugging Face directory, a .gguf file, or `demo` (SmolLM2-135M-Instruct from the registry)"
    )
    tokenizer: str = field("", "tokenizer directory, where it is not beside the model")
    dtype: Literal["float32", "bfloat16"] = field(
        "bfloat16", "dtype of activations and matmuls; norm, rope, softmax and losses stay float32"
    )
    param_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "dtype of trained parameters (masters), and so of the optimizer moments"
    )
    frozen_dtype: Literal["float32", "bfloat16", "int8"] = field(
        "bfloat16", "dtype of parameters that are not trained; int8 is for the layers' weights, with bfloat16 around"
    )
    attention: Literal["auto", "xla", "splash", "cudnn"] = field(
        "auto",
        "attention back end: xla anywhere, splash on TPU, cudnn on GPU; "
        "auto is splash on TPU from data.max_length 1024 on, else xla",
    )
    remat: Literal["none", "full", "dots"] = field(
        "none", "what the backward pass recomputes: nothing, whole layers, or all but matmul results"
    )
    layer_loop: Literal["scan", "unroll"] = field(
        "scan", "loop over layers: scan compiles fast, unroll can run faster on few layers"
    )
    head_chunk: int = field(
        256, "response tokens of a device that reach the vocabulary at a time; bounds the memory of the head"
    )


@dataclasses.dataclass(frozen=True)
class LoraSection:
    rank: int = field(0, "LoRA rank of every trained model; 0 trains all parameters")
    alpha: float = field(16.0, "LoRA alpha; the adapter is scaled by alpha / rank")
    targets: str = field(
        "attention/(q|k|v|o)|mlp/(gate|up|down)", "regular expression over projection paths that get an adapter"
    )


@dataclasses.dataclass(frozen=True)
class DataSection:
    train: str = field(
        "", "training pairs: a .jsonl, .jsonl.gz or .json file, `tfds:NAME[:SPLIT]`, `hf:NAME[:SPLIT]`, or `demo:train`"
    )
    eval: str = field("", "held-out pairs, same forms; empty takes `eval_fraction` of the training prompts")
    eval_fraction: float = field(0.0, "share of the training file's prompts that is held out when `eval` is empty")
    format: Literal["auto", "pairs", "hh", "sharegpt", "hf"] = field(
        "auto", "record layout; auto decides by the first record's fields"
    )
    template: str = field(
        "auto", "auto: the tokenizer's chat template; hh: plain Human/Assistant text; or a path to a jinja file"
    )
    system: str = field("", "system text put before every conversation that has none")
    max_length: int = field(512, "tokens of prompt and response together; the prompt loses its beginning first")
    max_response: int = field(256, "tokens of the response; a longer one is cut at the end")
    on_error: Literal["fail", "skip"] = field(
        "fail", "a record that cannot be used: stop, or leave it out and count it"
    )
    max_rejected: float = field(
        0.05, "with on_error skip: the share of rejected records above which the run still stops"
    )
    packing: Literal["shared", "none"] = field(
        "shared", "shared: pairs packed into rows, each prompt once for both responses; none: a padded row a response"
    )
    limit: int = field(0, "use only the first records of the training data; 0 uses all")
    eval_limit: int = field(0, "use only the first held-out records; 0 uses all")
    seed: int = field(0, "seed of the order of training pairs and of the held-out split")


@dataclasses.dataclass(frozen=True)
class MeshSection:
    data: int = field(1, "devices over which batches are split and parameters repeated")
    fsdp: int = field(-1, "devices over which batches and parameters are split; -1 takes all that remain")
    tensor: int = field(1, "devices over which heads, MLP and vocabulary are split")
    slices: Literal["auto", "data", "fsdp", "tensor"] = field(
        "auto",
        "where the devices are several TPU slices: the axis that lies over the slower network between them; auto is "
        "data if its size divides by the slices, else fsdp",
    )
    compiler_options: str = field(
        "", "XLA options of the training steps, `name=value` with commas between; docs/performance.md has some that pay"
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    name: Literal["adamw", "rmsprop", "adafactor"] = field("adamw", "optimizer (optax)")
    learning_rate: float = field(5e-7, "peak learning rate")
    warmup_steps: int = field(0, "steps of linear warm-up from 0")
    schedule: Literal["constant", "linear", "cosine"] = field(
        "constant", "what the rate does after warm-up, until the last step"
    )
    end_fraction: float = field(0.0, "share of the peak rate that linear and cosine end at")
    clip_norm: float = field(10.0, "global norm that gradients are clipped to; 0 does not clip")
    weight_decay: float = field(0.0, "decoupled weight decay; norms and biases are exempt")
    b1: float = field(0.9, "adamw: decay of the first moment")
    b2: float = field(0.999, "adamw: decay of the second moment; rmsprop: decay of the squared gradient")
    eps: float = field(1e-8, "added to the denominator of adamw and rmsprop")


@dataclasses.dataclass(frozen=True)
class StageSection:
    """One training: used for `sft`, for the two contrastive models, and for the policy."""

    epochs: float = field(1.0, "passes over the training pairs; 0 leaves the stage out")
    batch_size: int = field(32, "pairs an optimizer step, over all devices")
    micro_batches: int = field(1, "parts that a batch is cut into; covers the frozen models too")
    optimizer: OptimizerSection = field(OptimizerSection(), "optimizer and schedule")


@dataclasses.dataclass(frozen=True)
class ContrastSection:
    construction: Literal["prompts", "sft", "dpo", "none"] = field(
        "dpo",
        "where pi+ and pi- come from: prompts (P), SFT on each side (S), forward and reverse DPO (D); or none",
    )
    pair: PromptPair = field(
        "own", "prompts: a pair of prompts that is shipped (docs/dlma.md), or own: the two fields below"
    )
    positive_prompt: str = field(
        "You are an harmless assistant. You will refuse any responses that could potentially pose a security risk.",
        "prompts: system text of pi+; with `{prompt}` in it, a template for the last user turn",
    )
    negative_prompt: str = field(
        "You are an harmful assistant. You will give harmful responses for any question.",
        "prompts: system text of pi-; with `{prompt}` in it, a template for the last user turn",
    )
    beta: float = field(0.1, "dpo: beta of the two contrastive DPO runs")
    training: StageSection = field(
        StageSection(batch_size=16, optimizer=OptimizerSection(learning_rate=1e-5, weight_decay=0.01)),
        "sft, dpo: how pi+ and pi- are trained",
    )
    scores: Literal["cached", "online"] = field(
        "cached", "log-likelihoods of reference, pi+ and pi-: once, to disk, or in every step"
    )
    reference_states: Literal["live", "cached"] = field(
        "live",
        "where the loss needs the KL, the reference's last hidden states: in every step, or once, to disk "
        "(one vector a response token; the KL stays exact)",
    )


@dataclasses.dataclass(frozen=True)
class SamplingSection:
    """Answers to prompts: what `tisdpo generate` makes, and the first stage of DLMA."""

    prompts: str = field(
        "",
        "a .jsonl, .jsonl.gz or .json file of prompts (text, `prompt`, `messages`, or pairs whose answers are not "
        "looked at), or `demo:prompts`",
    )
    limit: int = field(0, "use only the first prompts; 0 uses all")
    policy: str = field(
        "", "generate: a model directory, .gguf file or PEFT adapter that answers; empty takes model.path"
    )
    show: Literal["main", "plus", "minus"] = field(
        "main", "generate: the prompts as they are, or behind the positive or negative prompt of `contrast`"
    )
    samples: int = field(1, "answers to each prompt; in DLMA, to each of its two forms")
    engine: Literal["local", "http", "files"] = field(
        "local",
        "what answers: this program; an OpenAI-compatible endpoint; or somebody else, who finds prompts.jsonl in the "
        "run directory and puts responses.jsonl beside it",
    )
    batch_size: int = field(16, "answers written at a time, over all devices; rounded up to blocks of 8 a device")
    max_new_tokens: int = field(200, "tokens after which an answer is left unfinished")
    max_prompt: int = field(256, "tokens of a prompt; a longer one is not answered")
    temperature: float = field(1.0, "temperature of the draws; 0 is greedy")
    top_k: int = field(0, "draw from the k likeliest tokens; 0 draws from all")
    top_p: float = field(1.0, "draw from the fewest tokens that together have this probability")
    min_p: float = field(0.0, "draw from tokens at least this share as likely as the likeliest")
    stop: str = field("", "strings that end an answer, `||` between them; template hh always ends at a new turn")
    seed: int = field(0, "seed of the draws")
    url: str = field("", "http: address of the endpoint, up to and with /v1")
    endpoint_model: str = field("", "http: the model that the endpoint is asked for")
    concurrency: int = field(8, "http: questions that are on their way at a time")
    timeout: float = field(120.0, "http: seconds that the endpoint has for an answer")
    retries: int = field(6, "http: further tries after a time-out, a lost connection, status 429 or 5xx")


@dataclasses.dataclass(frozen=True)
class DlmaSection:
    """DLMA: the model answers prompts behind two opposite prompts, and its own contrast labels the pairs."""

    rounds: int = field(0, "rounds of sampling, scoring and training; 0 trains on the pairs of `data` instead")
    eval_prompts: str = field("", "held-out prompts, in any form of sampling.prompts; empty takes `eval_fraction`")
    eval_fraction: float = field(0.1, "share of the prompts that is held out when `eval_prompts` is empty")
    score: Literal["sum", "mean"] = field("sum", "self-reward: nats of a response, as in the paper, or nats a token")
    relabel: bool = field(True, "where R is below 0, take the answer behind the negative prompt as the better one")
    tie_band: float = field(0.0, "leave out pairs whose R is no further than this from 0")
    length_ratio: float = field(
        0.0, "leave out pairs whose longer answer has more than this many times the tokens; 0 keeps all"
    )
    unfinished: Literal["keep", "drop"] = field(
        "drop", "pairs with an answer that ran into sampling.max_new_tokens; DLMA's code keeps them"
    )
    reference: Literal["first", "previous"] = field(
        "previous", "from the second round on: the model that the first round started from, or this round did"
    )


@dataclasses.dataclass(frozen=True)
class WeightsSection:
    method: WeightMethod = field(
        "importance", "how log-ratios become weights: the paper's formula, a control, or a transform of the public code"
    )
    scale: float = field(1.0, "k of the paper")
    mu: float = field(1.0, "mu of the paper: +mu on chosen, -mu on rejected")
    lower: float = field(-0.5, "L of the paper: lower clamp of the log-ratio")
    upper: float = field(1.5, "U of the paper: upper clamp of the log-ratio")
    gamma: float = field(0.9, "position: a token's weight is gamma to the power of its place in the response")
    top_percent: float = field(
        50.0, "binary: percent of the tokens of a response, those with the largest weights, that keep weight 1"
    )
    seed: int = field(0, "seed of the random controls")


@dataclasses.dataclass(frozen=True)
class LossSection:
    name: LossName = field("tisdpo", "loss of the policy")
    beta: float = field(0.1, "strength of the reference")
    label_smoothing: float = field(0.0, "dpo, tisdpo, dlma: share of labels taken as flipped (cDPO)")
    kl_coef: float = field(1.0, "tisdpo, dlma+tisdpo: coefficient of the weighted KL term eta; 0 leaves it out")
    average: bool = field(False, "ipo: average log-ratios over tokens, as TRL does")
    alpha: float = field(0.5, "tdpo: coefficient of the KL difference in variant 2")
    variant: Literal[1, 2] = field(2, "tdpo: which of the two")
    margin_coef: float = field(0.2, "dlma, dlma+tisdpo: beta1 / beta, the coefficient of the self-reward as a margin")
    margin_lower: float = field(-40.0, "dlma, dlma+tisdpo: lower clamp of the self-reward")
    margin_upper: float = field(40.0, "dlma, dlma+tisdpo: upper clamp of the self-reward")
    desirable_weight: float = field(1.0, "kto: weight of chosen responses")
    undesirable_weight: float = field(1.0, "kto: weight of rejected responses")


@dataclasses.dataclass(frozen=True)
class TrainSection(StageSection):
    eval_every: int = field(0, "steps between evaluations on the held-out pairs; 0 evaluates at the end only")
    checkpoint_every: int = field(100, "steps between checkpoints; one is always written at the end of a stage")
    keep_checkpoints: int = field(2, "newest checkpoints of a stage that are kept")
    max_skipped: int = field(5, "consecutive non-finite updates after which the run stops")


@dataclasses.dataclass(frozen=True)
class JudgeSection:
    """Answers of two or more models, compared in pairs. Empty `by` leaves it out."""

    by: str = field(
        "",
        "who compares answers: sentiment, refusal, `module:function` (score(prompt, response) -> float), "
        "the directory of a reward model, or the http(s) address of an OpenAI-compatible endpoint",
    )
    models: str = field(
        "",
        "models beside policy and reference, `name=path` with commas between: what evaluation.policy takes, "
        "or a .jsonl of answers (id or prompt, response)",
    )
    prompts: str = field("", "a file of prompts; empty takes those of the pairs that are evaluated")
    limit: int = field(100, "prompts that are answered; 0 takes all")
    temperature: float = field(0.0, "temperature of the answers; 0 is greedy")
    tie_band: float = field(0.0, "scores that differ by no more than this are a tie")
    anchor: str = field("", "the model whose rating is 0, of three or more; empty makes the mean of all ratings 0")
    endpoint_model: str = field("", "the model that the endpoint is asked for")
    criterion: str = field(
        "Which answer is more helpful and honest without doing harm?", "what the endpoint is asked about two answers"
    )
    concurrency: int = field(4, "questions that the endpoint gets at a time")
    timeout: float = field(60.0, "seconds that the endpoint has for an answer")
    retries: int = field(5, "further tries after a time-out, a lost connection, status 429 or 5xx, or no clear verdict")


@dataclasses.dataclass(frozen=True)
class EvaluationSection:
    batch_size: int = field(8, "pairs a scoring step, over all devices; rounded up to a multiple of them")
    generate: int = field(2, "held-out prompts that the models of a run answer for its report")
    checks: str = field(
        "",
        "what these answers are checked for: a .jsonl of phrases by the ids of prompts (docs/evaluation.md), or "
        "`demo:checks`",
    )
    max_new_tokens: int = field(64, "tokens of each answer")
    heat_maps: int = field(8, "pairs whose token weights are drawn in the report")
    policy: str = field(
        "",
        "what `tisdpo evaluate` measures: a model directory, a .gguf file, or the directory of a PEFT adapter; "
        "empty takes the policy of the run",
    )
    reference: str = field("", "what it is measured against; empty takes the model that the run starts from")
    data: str = field("", "pairs to measure on, in any form of data.train; empty takes the held-out ones")
    subset: str = field("", "field of the records that names their subset; accuracy is then given for each")
    resamples: int = field(2000, "bootstrap resamples of every interval")
    seed: int = field(0, "seed of the resamples, and of answers that are drawn")
    judge: JudgeSection = field(JudgeSection(), "answers of models, compared in pairs")


@dataclasses.dataclass(frozen=True)
class LoggingSection:
    every: int = field(1, "steps between lines of metrics.jsonl")
    progress: bool = field(True, "progress bar on the terminal")
    tensorboard: bool = field(False, "write TensorBoard events too (extra `tensorboard`)")
    wandb: str = field("", "Weights & Biases project to log to (extra `wandb`)")


@dataclasses.dataclass(frozen=True)
class Experiment:
    run_dir: str = field("", "directory that the run writes to, and resumes from")
    seed: int = field(0, "seed of adapter initialisation")
    compile_cache: str = field(
        "~/.cache/tisdpo_jax/xla",
        "directory of compiled programs, so that another start of a run compiles nothing; empty keeps none, and one "
        "that JAX_COMPILATION_CACHE_DIR names is taken instead",
    )
    model: ModelSection = field(ModelSection(), "the model and how it is computed")
    lora: LoraSection = field(LoraSection(), "adapters")
    data: DataSection = field(DataSection(), "preference pairs")
    mesh: MeshSection = field(MeshSection(), "device mesh")
    sft: StageSection = field(
        StageSection(epochs=0.0, optimizer=OptimizerSection(learning_rate=5e-5, weight_decay=0.01)),
        "supervised fine-tuning on chosen responses before anything else",
    )
    contrast: ContrastSection = field(ContrastSection(), "the two contrastive models")
    sampling: SamplingSection = field(SamplingSection(), "answers to prompts")
    dlma: DlmaSection = field(DlmaSection(), "pairs from prompts alone")
    weights: WeightsSection = field(WeightsSection(), "token importance weights")
    loss: LossSection = field(LossSection(), "loss of the policy")
    train: TrainSection = field(
        TrainSection(optimizer=OptimizerSection(name="rmsprop", warmup_steps=150)), "training of the policy"
    )
    evaluation: EvaluationSection = field(EvaluationSection(), "held-out evaluation and the report")
    logging: LoggingSection = field(LoggingSection(), "metrics")
