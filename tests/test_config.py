import pytest
from ml_collections import ConfigDict

from jaxpretrain.config import (
    complete,
    downstream_tasks,
    load,
    make_objective,
    model_config,
    sources,
)
from jaxpretrain.data.tasks import EmbeddedTask, FileTask, MinimalPairsTask, TfdsTask
from jaxpretrain.errors import UserError
from jaxpretrain.schema import flatten

MINIMAL = "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict()\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(MINIMAL)
    return path


def test_every_key_is_there_with_the_default_of_its_component(file):
    config = load(str(file))
    flat = flatten(config.to_dict())
    assert flat["objective.mask_rate"] == 0.15 and flat["optimizer.beta2"] == 0.98
    assert flat["model.width"] == 256 and flat["data.length"] == 128
    assert flat["mesh.rules.width"] == "fsdp" and flat["source.name"] == "embedded"
    assert "model.vocab_size" not in flat and "objective.backbone" not in flat
    with pytest.raises(AttributeError):
        config.data.lenght = 3  # locked


def test_the_command_line_is_read_as_the_type_of_its_key(file):
    config = load(
        str(file),
        {
            "objective.mask_rate": "0.3",
            "objective.whole_words": "true",
            "train.steps": "2e3",
            "optimizer.learning_rate": "1",
            "model.norm": "rmsnorm",
            "mesh.rules.mlp": "fsdp",
            "seed": "7",
        },
    )
    assert config.objective.mask_rate == 0.3 and config.objective.whole_words is True
    assert config.train.steps == 2000 and type(config.train.steps) is int
    assert type(config.optimizer.learning_rate) is float
    assert config.model.norm == "rmsnorm" and config.mesh.rules.mlp == "fsdp" and config.seed == 7


def test_a_preset_changes_the_defaults_and_keeps_what_is_set(file):
    config = load(str(file), {"model.preset": "bert", "model.layers": "3"})
    assert (config.model.width, config.model.layers) == (768, 3)
    assert config.model.norm_position == "post" and model_config(config, 50).vocab_size == 50


def test_another_objective_by_name_leaves_the_keys_of_the_first_behind(tmp_path):
    path = tmp_path / "mlm.py"
    path.write_text(MINIMAL.replace("ConfigDict()", "{'objective': {'mask_rate': 0.4}}"))
    assert load(str(path)).objective.mask_rate == 0.4
    config = load(str(path), {"objective.name": "clm"})
    assert make_objective(config).name == "clm" and "mask_rate" not in config.objective
    with pytest.raises(UserError, match="objective.mask_rate is not a setting"):
        load(str(path), {"objective.name": "clm", "objective.mask_rate": "0.3"})


def test_an_argument_reaches_the_file(tmp_path):
    path = tmp_path / "sized.py"
    path.write_text("def get_config(size):\n    return {'model': {'layers': int(size)}}\n")
    assert load(f"{path}:3").model.layers == 3


def test_a_mixture_has_a_section_and_a_weight_for_each_source(tmp_path):
    path = tmp_path / "mix.py"
    path.write_text(
        "def get_config():\n    return {'source': {'name': 'mixture', 'parts': {\n"
        "        'ours': {'name': 'text', 'path': 'a/*.txt', 'weight': 3.0},\n"
        "        'python': {'name': 'embedded'}}}}\n"
    )
    for key, value, message in (
        ("parts.ours.weight", "-1", "ours.weight is -1.0"),
        ("parts.our.weight", "1", "our.name is not set.*did you mean ours"),
        ("parts.ours", "text", "'text': it is a section"),
    ):
        with pytest.raises(UserError, match=message):
            load(str(path), {f"source.{key}": value})
    named, weights = sources(load(str(path), {"source.parts.ours.document": "line"}))
    assert weights == {"ours": 3.0, "python": 1.0}
    assert named["ours"].path == "a/*.txt" and named["ours"].document == "line"
    with pytest.raises(UserError, match="source.parts.ours.docment.*did you mean.*document"):
        load(str(path), {"source.parts.ours.docment": "line"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"objective.mask_rat": "0.3"}, "objective.mask_rat .*did you mean objective.mask_rate"),
        ({"objektive.mask_rate": "0.3"}, "objektive .*did you mean objective"),
        ({"optimiser.learning_rate": "1"}, "did you mean optimizer"),
        ({"modle.width": "3"}, "did you mean model"),
        ({"objective.mask_rate": "1.7"}, "objective.mask_rate is 1.7"),
        ({"objective.mask_rate": "high"}, "'high': it must be a number"),
        ({"objective.mask_rate": "nan"}, "finite"),
        ({"train.steps": "10.5"}, "'10.5': it must be a whole number"),
        ({"train.steps": "many"}, "whole number"),
        ({"train.steps": "0"}, "train.steps is 0: it must be at least 1"),
        ({"objective.whole_words": "yes"}, "True or False"),
        ({"model.norm": "layer_norm"}, "must be one of layernorm, rmsnorm.*did you mean layernorm"),
        ({"model.preset": "bart"}, "did you mean bert"),
        ({"objective.name": "mlmm"}, "must be one of mlm, .*clm.*did you mean mlm"),
        ({"source.name": "jsonlines"}, "did you mean jsonl"),
        ({"source.name": "text"}, "source.path is not set"),
        ({"source.path": "a.txt"}, "not a setting of 'embedded', but of text, .*set .*source.name"),
        ({"model.heads": "3"}, "heads is 3.* 256"),
        ({"optimizer.warmup_steps": "1000"}, "1000 and train.steps 1000"),
        ({"model.positions": "learned", "data.length": "1024"}, "1024.* 512"),
        ({"store.test_fraction": "0.99"}, "0.02.* 0.99"),
        ({"train.stop_at": "2000"}, "2000.*1000"),
        ({"seed": "-1"}, "seed is -1"),
        ({"seed.x": "1"}, "config.seed"),
        ({"data": "3"}, "it is a section"),
        ({"mesh.rules.width": "sideways"}, None),
    ],
    ids=str,
)
def test_a_wrong_key_type_or_value_is_one_clear_line(file, overrides, message):
    if message is None:  # only the mesh knows its axes
        assert load(str(file), overrides).mesh.rules.width == "sideways"
        return
    with pytest.raises(UserError, match=message) as error:
        load(str(file), overrides)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "some.py:1: SyntaxError"),
        ("x = 1\n", "has no get_config"),
        (
            "def get_ablation():\n    return {}\n",
            "some.py is an ablation.* use 'jaxpretrain ablate'",
        ),
        ("def get_config():\n    y = 1\n    return z\n", "some.py:3: NameError"),
        ("def get_config():\n    return 5\n", "returned int"),
        ("def get_config():\n    return {'train': {'steps': '10'}}\n", "'10'.*whole number"),
        ("def get_config():\n    return {'train': {'steps': True}}\n", "True.*whole number"),
        ("def get_config():\n    return {'train': 5}\n", "is a section"),
    ],
)
def test_a_broken_file_is_named_with_its_line(file, text, message):
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load(str(file))


def test_an_argument_that_the_file_does_not_take_is_one_line(file):
    file.write_text(MINIMAL)
    with pytest.raises(UserError, match="some.py takes no argument, and was given 'big'$"):
        load(f"{file}:big")


def test_a_missing_file_names_the_nearest(file):
    with pytest.raises(UserError, match="did you mean .*some.py"):
        load(str(file.parent / "sone.py"))


def test_complete_is_idempotent():
    config = complete(ConfigDict({"model": {"preset": "gpt2"}}))
    assert complete(config.to_dict()).to_dict() == config.to_dict()


def test_the_downstream_task_of_a_file_without_any_is_the_embedded_one(file):
    config = load(str(file))
    assert set(config.tasks) == {"packages"}
    assert downstream_tasks(config) == {"packages": EmbeddedTask()}
    assert list(config.downstream.learning_rates) == [5e-5, 2e-4, 8e-4]
    assert (config.downstream.seeds, config.downstream.every) == (3, 0)
    config = load(str(file), {"tasks.mine.name": "files", "tasks.mine.path": "a/b"})
    assert downstream_tasks(config) == {"mine": FileTask(path="a/b")}
    assert config.tasks.mine.train_rows == 2000 and config.tasks.mine.label == "label"


def test_tasks_have_names_of_their_own_and_the_keys_of_their_kind(tmp_path):
    path = tmp_path / "tasks.py"
    path.write_text(
        "def get_config():\n    return {'tasks': {\n"
        "        'sst': {'name': 'files', 'path': 'x', 'metric': 'f1'},\n"
        "        'sts': {'name': 'tfds', 'dataset': 'glue/stsb', 'kind': 'similarity'},\n"
        "        'blimp': {'name': 'minimal_pairs', 'pairs': 5}}}\n"
    )
    config = load(str(path), {"tasks.sst.train_rows": "1e2", "tasks.sts.download": "true"})
    assert downstream_tasks(config) == {
        "sst": FileTask(path="x", metric="f1", train_rows=100),
        "sts": TfdsTask(dataset="glue/stsb", kind="similarity", download=True),
        "blimp": MinimalPairsTask(pairs=5),
    }
    assert complete(config.to_dict()).to_dict() == config.to_dict()
    path.write_text("def get_config():\n    return {'tasks': {}}\n")
    assert downstream_tasks(load(str(path))) == {}


def test_a_list_is_read_from_the_command_line_with_commas(file):
    for text, rates in (("1e-4,3e-4", (1e-4, 3e-4)), ("[1]", (1.0,)), ("1e-4, 2e-4", (1e-4, 2e-4))):
        found = load(str(file), {"downstream.learning_rates": text}).downstream.learning_rates
        assert tuple(found) == rates and all(type(rate) is float for rate in found)
    file.write_text("def get_config():\n    return {'downstream': {'learning_rates': [1, 2e-3]}}\n")
    assert tuple(load(str(file)).downstream.learning_rates) == (1.0, 2e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"tasks.x.name": "file"},
            "tasks.x.name is 'file': .* embedded, files.*did you mean files",
        ),
        ({"tasks.x.path": "a"}, "tasks.x.name is not set: it must be one of embedded, files, tfds"),
        (
            {"tasks.x.name": "files", "tasks.x.pth": "a"},
            "tasks.x.pth is not .*did you mean tasks.x.p",
        ),
        (
            {"tasks.x.name": "embedded", "tasks.x.path": "a"},
            "not a setting of 'embedded', but of f",
        ),
        (
            {"tasks.x.name": "files", "tasks.y.path": "a"},
            "tasks.y.name is not set.*did you mean x|y",
        ),
        ({"tasks.x": "files"}, "tasks.x is 'files': it is a section"),
        ({"tasks": "files"}, "tasks is 'files': it is a section"),
        ({"tasks.a/b.name": "files"}, "the name of a task is text without"),
        ({"tasks.x.name": "files", "tasks.x.kind": "clasification"}, "did you mean classification"),
        (
            {"tasks.x.name": "files", "tasks.x.metric": "pearson"},
            "tasks.x: metric is 'pearson', and ",
        ),
        ({"tasks.x.name": "files", "tasks.x.test_rows": "-1"}, "config.tasks.x: test_rows is -1"),
        (
            {"tasks.x.name": "files", "tasks.x.train_rows": "few"},
            "'few': it must be a whole number",
        ),
        (
            {"downstream.learning_rates": "1e-4,fast"},
            "learning_rates.* 'fast': it must be a number",
        ),
        ({"downstream.learning_rates": ""}, "'': it must be a number"),
        ({"downstream.learning_rates": "1e-4,-1"}, "-1.0.*give some, all above 0"),
        ({"downstream.learning_rates": "nan"}, r"learning_rates\[0\] is nan.*finite"),
        ({"downstream.learning_rates.x": "1"}, "learning_rates has no keys below it"),
        ({"downstream.seeds": "0"}, "downstream.seeds is 0: it must be at least 1"),
        ({"downstream.pooling": "max"}, "must be one of mean, cls, last"),
    ],
    ids=str,
)
def test_a_wrong_task_is_one_clear_line(file, overrides, message):
    test_a_wrong_key_type_or_value_is_one_clear_line(file, overrides, message)


def test_a_list_in_a_file_must_be_one_of_numbers(file):
    for value, message in (
        ("0.1", "must be a list"),
        ("['a']", r"\[0\] is 'a': .*number"),
        ("[]", "some"),
    ):
        file.write_text(
            f"def get_config():\n    return {{'downstream': {{'learning_rates': {value}}}}}\n"
        )
        with pytest.raises(UserError, match=message):
            load(str(file))
