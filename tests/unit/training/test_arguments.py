"""What a user may write, and what it means on either version of transformers."""

import json
from pathlib import Path

import pytest
from tiny_shop import write_arguments

import ofa_hf.training
from ofa_hf.errors import UserError
from ofa_hf.training import RECIPES, FinetuneArguments, parse_arguments
from ofa_hf.training.arguments import TASK_METRIC


NEEDED = ("--model_name_or_path", "m", "--output_dir", "o", "--train_caption_file", "c", "--train_image_file", "i")
ON_CPU = ("--use_cpu", "true")


@pytest.mark.parametrize("name", RECIPES)
def test_a_ready_recipe_is_found_by_its_name(name):
    # bf16 asks for a device that can do it, which a test machine need not have
    ours, trainers = parse_arguments(name, [*NEEDED, *ON_CPU, "--bf16", "false"])
    assert ours.freeze_encoder == (name == "article")
    assert trainers.learning_rate == {"article": 5e-5, "official": 1e-5}[name]
    assert trainers.max_grad_norm == 1.0
    assert ours.targets_per_row >= 1
    assert trainers.per_device_train_batch_size % ours.targets_per_row == 0, "a batch must come out whole"


def test_a_run_shorter_than_its_logging_interval_has_a_loss_in_its_log():
    _, trainers = parse_arguments(None, [*NEEDED, *ON_CPU])
    assert trainers.logging_first_step
    _, trainers = parse_arguments(None, [*NEEDED, *ON_CPU, "--logging_first_step", "false"])
    assert not trainers.logging_first_step


def test_the_articles_recipe_is_the_articles():
    ours, trainers = parse_arguments("article", [*NEEDED, *ON_CPU, "--bf16", "false"])
    assert (trainers.per_device_train_batch_size, trainers.warmup_steps, trainers.num_train_epochs) == (128, 3000, 10)
    assert (trainers.lr_scheduler_type, ours.freeze_word_embed, ours.max_seq_length) == ("cosine", False, 100)


def test_the_official_recipe_is_the_official_scripts():
    ours, trainers = parse_arguments("official", [*NEEDED, *ON_CPU, "--bf16", "false"])
    assert (ours.label_smoothing, ours.encoder_drop_path_rate, ours.decoder_drop_path_rate) == (0.1, 0.1, 0.1)
    assert (ours.dropout, ours.freeze_word_embed, ours.decay_all_parameters) == (0.1, True, True)
    assert (trainers.adam_beta1, trainers.adam_beta2, trainers.weight_decay) == (0.9, 0.999, 0.01)
    assert (trainers.warmup_steps or trainers.warmup_ratio) == 0.06


def test_flags_win_over_the_file(parse):
    ours, trainers = parse("--learning-rate", "0.5", "--freeze_encoder", "false", learning_rate=0.1)
    assert trainers.learning_rate == 0.5
    assert not ours.freeze_encoder


@pytest.mark.parametrize("as_flags", [False, True])
def test_names_of_older_versions_are_translated(parse, as_flags):
    old = {"evaluation_strategy": "steps", "eval_steps": 3, "warmup_ratio": 0.5, "label_smoothing_factor": 0.1}
    old |= {"gradient_checkpointing": True, "overwrite_output_dir": True, "per_gpu_train_batch_size": 4}
    flags = [word for name, value in old.items() for word in (f"--{name}", str(value))]
    ours, trainers = parse(*flags) if as_flags else parse(**old, per_device_train_batch_size=4)
    assert trainers.use_cpu, "no_cuda of the shop's file"
    assert trainers.eval_strategy == "steps"
    assert (trainers.warmup_steps or trainers.warmup_ratio) == 0.5
    assert ours.label_smoothing == 0.1
    assert trainers.label_smoothing_factor == 0, "the Trainer's own doubles the loss under accumulation"
    assert trainers.gradient_checkpointing
    assert trainers.per_device_train_batch_size == 4


def test_warm_up_is_in_steps_or_a_share_whatever_the_version(parse):
    assert parse(warmup_steps=0, warmup_ratio=0.25)[1].get_warmup_steps(8) == 2
    assert parse(warmup_ratio=0.0, warmup_steps=3)[1].get_warmup_steps(8) == 3
    assert parse("--warmup_steps", "0.25", warmup_steps=3)[1].get_warmup_steps(8) == 2


def test_the_best_checkpoint_is_the_one_with_the_best_score_unless_another_metric_is_named(parse):
    saving = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2}
    trainers = parse(**saving)[1]
    assert (trainers.metric_for_best_model, trainers.greater_is_better) == (TASK_METRIC, True)
    trainers = parse(**saving, metric_for_best_model="loss")[1]
    assert (trainers.metric_for_best_model, trainers.greater_is_better) == ("loss", False)


@pytest.mark.parametrize("as_flags", [False, True])
def test_an_unknown_name_is_refused_with_the_one_that_was_meant(parse, as_flags):
    with pytest.raises(UserError, match=r"Unknown argument lerning_rate .*Did you mean learning_rate\?"):
        parse("--lerning-rate", "1") if as_flags else parse(lerning_rate=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_caption_file": None}, "train_image_file needs train_caption_file"),
        ({"dataset_name": "d"}, "on files or on a data set"),
        ({"learning_rate": "abc"}, "learning_rate is 'abc'; it must be a number"),
        ({"max_steps": [1]}, "max_steps is .1.; it must be a number"),
        ({"freeze_encoder": "perhaps"}, "freeze_encoder is 'perhaps'"),
        ({"label_smoothing": 2}, "label_smoothing is 2"),
        ({"targets_per_row": 0}, "targets_per_row is 0"),
        ({"lr_scheduler_type": "zigzag"}, "The arguments are invalid.*zigzag"),
        ({"accelerator_config": 2**70}, "accelerator_config is 1180591620717411303424; it must be the path of a JSON"),
        ({"accelerator_config": 1}, "accelerator_config is 1"),  # a file that is open already: what is printed
        ({"fsdp_config": True}, "fsdp_config is True"),
        ({"deepspeed": [1]}, "deepspeed is .1."),
    ],
)
def test_impossible_values_are_refused_by_name(parse, changes, words):
    with pytest.raises(UserError, match=words):
        parse(**changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [('{"a": 1,', "cannot be read as JSON"), ("[1]", "holds a list"), ("", "cannot be read as JSON")],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text, words):
    file = tmp_path / "args.json"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        parse_arguments(file)


def test_a_missing_file_is_refused_with_the_names_of_the_recipes():
    with pytest.raises(UserError, match="article, official"):
        parse_arguments("nowhere.json")


def test_a_missing_name_is_asked_for(tmp_path):
    file = write_arguments(tmp_path / "args.json", {"output_dir": "o"})
    with pytest.raises(UserError, match="model_name_or_path is missing"):
        parse_arguments(file)


def test_a_word_that_is_no_flag_is_a_usage_error(parse, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("word")
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_text_in_a_json_file_counts_as_the_number_or_switch_it_says(parse):
    ours, trainers = parse(learning_rate="1e-4", freeze_encoder="false")
    assert trainers.learning_rate == 1e-4
    assert ours.freeze_encoder is False


def test_nothing_is_reported_anywhere_unless_asked(parse):
    assert parse()[1].report_to == []


def test_arguments_can_be_made_in_python():
    assert FinetuneArguments(model_name_or_path="m", dataset_name="d").locks_encoder


def test_recipes_are_plain_json_that_ships_with_the_package():
    folder = Path(ofa_hf.training.__file__).parent
    for file in RECIPES.values():
        assert isinstance(json.loads((folder / file).read_text(encoding="utf-8")), dict)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("merge_test", []),
        ("strict", 2.5),
        ("max_seq_length", 10.5),
        ("targets_per_row", True),
        ("num_proc", 10**30),
        ("dropout", float("nan")),
        ("model_name_or_path", None),
        ("train_caption_file", ["a", "b"]),
        ("warmup_steps", {}),
        ("warmup_ratio", "soon"),
        ("warmup_steps", float("inf")),
        ("metric_for_best_model", {}),
        ("accelerator_config", "no/such/file.json"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(tmp_path, name, value):
    values = {"model_name_or_path": "m", "output_dir": "o", "train_caption_file": "c", "train_image_file": "i"}
    path = write_arguments(tmp_path / "args.json", {**values, "use_cpu": True, name: value})
    with pytest.raises(UserError):
        parse_arguments(path)


def test_a_file_nested_without_end_is_no_json(tmp_path):
    path = tmp_path / "args.json"
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        parse_arguments(path)
