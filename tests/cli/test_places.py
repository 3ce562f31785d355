"""Paths, addresses and names of the hub: what is known is a plain local path; the rest is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tisdpo_jax.cli import main
from tisdpo_jax.cli.missing import check_hub_name, check_hub_names
from tisdpo_jax.cli.options import load
from tisdpo_jax.config import RECIPES, Experiment, build, check_places, get, leaves, nest
from tisdpo_jax.errors import ConfigError


def config_of(**fields: str) -> Experiment:
    """A configuration of the first recipe that has the fields."""
    for kind in RECIPES.values():
        if set(fields) <= {name for name, *_ in leaves(kind())}:
            return build(kind, nest(fields, where="test"), where="test")
    raise AssertionError(f"no recipe has {fields}")


PLACES = {name for kind in RECIPES.values() for name, field, _ in leaves(kind()) if field.metadata["place"]}


@pytest.mark.parametrize("field", sorted(PLACES | {"evaluation.judge.by"}))
def test_every_path_knows_home_and_no_scheme(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(PLACES) >= 14
    monkeypatch.setenv("HOME", "/home/somebody")
    text = "{{name: '{}'}}" if field.endswith("models") else "{}"
    for scheme in (
        "gs://b/x",
        "S3://b/x",
        "gs:/b/x",
        "hf://o/n",
        "file:///x",
        "abfs+x://b",
        " gs://b",
        "ftp://me:secret@h/x",
    ):
        with pytest.raises(ConfigError) as caught:
            check_places(config_of(**{field: text.format(scheme)}))
        said = str(caught.value)
        assert said.startswith(f"{field} is ") and scheme.strip().partition(":")[0].lower() in said.lower()
        assert "secret" not in said
    if not field.endswith("models"):
        assert get(check_places(config_of(**{field: "~/x"})), field) == "/home/somebody/x"
        with pytest.raises(ConfigError, match="no such home directory"):
            check_places(config_of(**{field: "~nobody-of-that-name/x"}))


@pytest.mark.parametrize(
    "value", ["demo:train", "hf:ORG/NAME:train", "hf:/saved/by/datasets", "tfds:hh/base:train", "a:b"]
)
def test_kinds_of_pairs_are_left_alone(value: str) -> None:
    assert check_places(config_of(**{"data.train": value})).data.train == value


@pytest.mark.parametrize("field", ["sampling.url", "evaluation.judge.by"])
@pytest.mark.parametrize(
    "address", ["http://me:secret@host/v1", "https://host/v1?key=secret", "http://host/v1#secret", "HTTP://secret@h"]
)
def test_an_address_holds_no_secrets(field: str, address: str) -> None:
    with pytest.raises(ConfigError, match=f"{field}.*environment") as caught:
        check_places(config_of(**{field: address}))
    assert "secret" not in str(caught.value)


def test_a_run_directory_of_a_bucket_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("run_dir: gs://bucket/run\nmodel: {path: demo}\ndata: {train: demo:train}\n")
    for arguments in (["run", "own.yaml"], ["run", "gs://bucket/own.yaml"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "gs:// is not supported" in error and "gcsfuse" in error and "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model.path", "gpt2", "are ORG/NAME[@revision]"),
        ("evaluation.judge.models", "{x: gpt2}", "are ORG/NAME[@revision]"),
        ("data.train", "ORG/NAME", "is written hf:ORG/NAME"),
        ("data.eval", "ORG/NAME", "is written hf:ORG/NAME"),
        ("evaluation.data", "ORG/NAME", "is written hf:ORG/NAME"),
        ("data.template", "ORG/NAME", "it must be auto"),
        ("sampling.prompts", "ORG/NAME", "prompts are read from a .jsonl"),
        ("dlma.eval_prompts", "ORG/NAME", "prompts are read from a .jsonl"),
    ],
)
def test_names_of_the_hub_say_what_to_do(
    field: str, value: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        check_hub_names(config_of(**{field: value}))
    assert str(caught.value).startswith(f"{field} ") and told in str(caught.value)


MODELS = ("model.path", "sampling.policy", "evaluation.policy", "evaluation.reference")


@pytest.mark.parametrize("field", [*MODELS, "model.tokenizer", "evaluation.judge.models"])
def test_models_of_the_hub_are_known_by_name(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("meta-llama/Llama-2-7b-hf", "ORG/NAME@v1"):
        check_hub_names(check_places(config_of(**{field: f"{{x: {value}}}" if field.endswith("models") else value})))
    if field in MODELS:
        for value in ("https://huggingface.co/ORG/NAME/tree/main", "hf://ORG/NAME"):
            with pytest.raises(ConfigError, match=f"{field} is .*written as its name alone, ORG/NAME"):
                check_places(config_of(**{field: value}))


def test_local_paths_are_no_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "there").mkdir(parents=True)
    for value in ("mine/there", "mine/gone", "models/Llama-2-7b-hf", "./a/b", "/a/b", "a/b/c", "demo", "x.gguf", ""):
        check_hub_name("model.path", "model", value)


def test_a_configuration_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("")

    def told(name: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load(Path(name), {})
        return str(caught.value)

    assert told("mime.yaml") == "mime.yaml: no such configuration file; did you mean mine.yaml?"
    assert "did you mean mine.yaml?" in told("mine.yml") and "did you mean mine.yaml?" in told("Mine")
    assert "configs/quickstart.yaml?" in told("quickstart") and "configs/quickstart.yaml?" in told(
        "configs/quikstart.yaml"
    )
    assert "shipped are" in told("zzz.yaml") and "is a directory" in told(str(tmp_path)) and "mine.yaml" in told(".")
    assert "no such configuration file" in told("x" * 300)
    (tmp_path / "link.yaml").symlink_to(tmp_path / "gone")
    assert "no such configuration file" in told("link.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("loss: {beta: 0.1}\nseed: 1\nloss: {beta: 0.2}\n", "own.yaml:3: not valid YAML: 'loss' stands twice"),
        ("loss:\n  beta: 0.1\n  beta: 0.2\n", "own.yaml:3: not valid YAML: 'beta' stands twice"),
        ("seed: 2026-99-99\n", "own.yaml: not valid YAML: month must be in 1..12"),
        ("[" * 600, "own.yaml"),
    ],
)
def test_yaml_that_says_two_things(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "own.yaml", {})
    assert told in str(caught.value)
