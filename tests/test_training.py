"""Training on a few rows with a one-layer Llama: losses, soups, the same weights each time."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.tiny_training import MODEL_PARAMS, PARAMS, texts, training_project
from stages import dpo, sft
from stages.core.errors import LibraError
from stages.preference.soup import mean_curve
from stages.training import data, trainer
from stages.training.policies import load_policy
from stages.training.scratch import new_model, train_tokenizer

STAGES = {"sft": sft, "dpo": dpo}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts(), MODEL_PARAMS.vocab_size)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(1)
    return new_model(MODEL_PARAMS, tokenizer)


@pytest.fixture()
def project(tmp_path, monkeypatch):
    return training_project(tmp_path, monkeypatch)


def curve(name: str) -> pl.DataFrame:
    return pl.read_csv(f"models/{name}/training.csv")


CHANGES = {
    "sft": {
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 0.02,
        "bpe_dropout": 0.3,
        "other_representation": 0.5,
        "prompt_loss": 0.9,
    },
    "dpo": {
        "epochs": 2,
        "batch_size": 8,
        "answers": 2,
        "pairs": "random",
        "learning_rate": 0.02,
        "bpe_dropout": 0.3,
        "other_representation": 0.5,
        "beta": 0.5,
        "loss": "ipo",
        "label_smoothing": 0.2,
        "sft_weight": 1.0,
        "soup": 2,
    },
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_param_of_a_trainer_changes_the_weights(project, stage):
    """TRL takes `label_smoothing` with any loss, but ignores it with `sigmoid`: hence `robust`."""
    base = {"loss": "robust", "label_smoothing": 0.1} if stage == "dpo" else {}
    folder = project(**{stage: base})
    sft.main()
    weights = {}
    for changes in [{}, *({key: value} for key, value in CHANGES[stage].items())]:
        if changes.get("loss"):
            changes |= {"label_smoothing": 0.0}
        project(**{stage: base | changes})
        STAGES[stage].main()
        weights[str(changes)] = (folder / "models" / stage / "model.safetensors").read_bytes()
    assert set(CHANGES[stage]) == set(PARAMS[stage]), "a param that isn't tried here"
    values = list(weights.values())
    without_effect = [change for change, value in weights.items() if values.count(value) > 1]
    assert not without_effect


def test_a_soup_is_the_mean_of_policies_trained_on_epochs_of_their_own(project, monkeypatch):
    """Compared with each of them alone, as the only policy of a run on its epochs."""
    changes = {"epochs": 2, "bpe_dropout": 0.2, "sft_weight": 1.0}
    folder = project(dpo=changes | {"soup": 3})
    sft.main()
    recorded = []
    record = SimpleNamespace(
        metrics=recorded.append, curve=recorded.append, model=lambda folder, name, base_folder: None
    )
    monkeypatch.setattr("stages.core.tracking.run", lambda *_, **__: nullcontext(record))
    dpo.main()
    metrics, logged_curve = recorded
    assert metrics == {"data": {"pairs": 3 * 2 * 16, "over_long": 0, "equal_when_cut": 0}}
    assert len(logged_curve) == 2 * 16 // 4
    soup, soup_curve = load_file(folder / "models/dpo/model.safetensors"), curve("dpo")

    make_rows, weights, curves, rows = data.dpo_rows, [], [], []

    def rows_of_member(member):
        def dpo_rows(table, tokenizer, epochs, **options):
            first = len(epochs) * member if "pairs" in options else 0  # not for validation rows
            dataset, counts = make_rows(
                table, tokenizer, range(first, first + len(epochs)), **options
            )
            rows.append(dataset.to_list())
            return dataset, counts

        return dpo_rows

    project(dpo=changes)
    for member in range(3):
        monkeypatch.setattr(data, "dpo_rows", rows_of_member(member))
        dpo.main()
        weights.append(load_file(folder / "models/dpo/model.safetensors"))
        curves.append(curve("dpo"))
    assert rows[0] != rows[2] != rows[4] != rows[0], "train rows differ"
    assert rows[1] == rows[3] == rows[5], "validation rows don't"
    assert soup.keys() == weights[0].keys()
    assert "lm_head.weight" not in soup, "tied weights are written once"
    assert not torch.equal(weights[0]["model.norm.weight"], weights[1]["model.norm.weight"])
    for name, values in soup.items():
        mean = (weights[0][name] + weights[1][name] + weights[2][name]) / 3
        assert torch.equal(values, mean), name
    assert soup_curve.columns == curves[0].columns
    assert soup_curve["step"].to_list() == curves[0]["step"].to_list()
    for column in soup_curve.columns:
        by_member = zip(*(curve[column] for curve in curves), strict=True)
        for mean, figures in zip(soup_curve[column], by_member, strict=True):
            if figures[0] is None:
                assert mean is None, column
            else:
                assert mean == pytest.approx(sum(figures) / 3, abs=2e-6), column


def test_the_mean_of_curves_is_taken_step_by_step():
    curves = [
        [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 2.0, "eval_loss": 1.0}],
        [{"step": 1, "loss": 1.0}, {"step": 3, "loss": 5.0}],
    ]
    assert mean_curve(curves) == [
        {"step": 1, "loss": 2.5},
        {"step": 2, "loss": 2.0, "eval_loss": 1.0},
        {"step": 3, "loss": 5.0},
    ]


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_label_smoothing_is_refused_for_a_loss_that_ignores_it(project, loss):
    project(dpo={"loss": loss, "label_smoothing": 0.1})
    with pytest.raises(LibraError, match=f"no effect on the loss {loss}; set it to 0, or loss to"):
        dpo.main()


def test_a_model_of_impossible_size_is_refused(tokenizer):
    message = r"model.hidden_size \(32\) must be a multiple of model.heads \(3\)"
    with pytest.raises(LibraError, match=message):
        new_model(MODEL_PARAMS.model_copy(update={"heads": 3}), tokenizer)


def test_a_policy_loads_as_it_was_saved(model, tokenizer, tmp_path):
    folder = tmp_path / "models/sft"
    with pytest.raises(LibraError, match=r"holds no model; run `dvc repro sft` first"):
        load_policy(folder)
    folder.mkdir(parents=True)
    (folder / "old").touch()
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "eval_loss": 0.25}]
    trainer.save_policy(model, tokenizer, rows, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["sft"], "no temporary folder"
    assert not (folder / "old").exists()
    csv = (folder / "training.csv").read_text()
    assert csv == "step,loss,eval_loss\n1,0.500000,\n2,,0.250000\n"
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".csv", ".safetensors"}

    loaded, loaded_tokenizer = load_policy(folder)
    weights, saved = loaded.state_dict(), load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[name], values) for name, values in saved.items())
    assert all(torch.equal(weights[name], values) for name, values in model.state_dict().items())
    assert loaded.dtype == torch.float32
    text = "<|user|>How is it kept?<|end|><|assistant|>"
    assert loaded_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded_tokenizer.chat_template == tokenizer.chat_template
    assert loaded_tokenizer.padding_side == "left"


def test_gathered_weights_are_loaded_in_the_dtype_they_are_written_in(model, tokenizer, tmp_path):
    """FSDP's model is in float32 while the gathered weights may not be.

    Loaded as float32 they would take twice the memory.
    """
    halves = {name: values.bfloat16() for name, values in model.state_dict().items()}
    rows = [{"step": 1, "loss": 0.5}]
    trainer.save_policy(model, tokenizer, rows, tmp_path / "sft", dict(halves))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(values, halves[name]) for name, values in loaded.state_dict().items())


def test_a_failure_while_saving_leaves_the_old_policy(model, tokenizer, tmp_path):
    folder = tmp_path / "sft"
    trainer.save_policy(model, tokenizer, [{"step": 1, "loss": 0.5}], folder)
    with pytest.raises(TypeError):
        trainer.save_policy(model, tokenizer, [{"step": 1, "loss": 0.5}, 5], folder)
    assert (folder / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]


def test_training_twice_gives_the_same_weights(project):
    """`sft` and `dpo` as in the pipeline: the same bytes, and others with another random seed."""
    folder = project()
    runs = []
    for random_seed in (7, 7, 8):
        project(random_seed)
        sft.main()
        dpo.main()
        files = sorted(path for path in (folder / "models").rglob("*") if path.is_file())
        runs.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    first, same, other = runs
    assert first == same
    assert {path.split("/")[1] for path in first} == {"sft", "dpo"}, "nothing else is left"
    weights = [f"models/{name}/model.safetensors" for name in STAGES]
    assert all(first[name] != other[name] for name in weights)
    assert first[weights[0]] != first[weights[1]]
    losses = curve("sft")["loss"].drop_nulls()
    assert losses[-1] < losses[0] and curve("sft")["step"].is_sorted()
    assert curve("sft")["eval_loss"].drop_nulls().len() >= 2


def test_the_first_step_has_the_loss_of_a_policy_that_equals_its_reference(project):
    """Both rewards are 0 at first: a loss of ln 2 for sigmoid, 1 for hinge, (1/2β)² for ipo."""
    project()
    sft.main()
    ln2 = math.log(2)
    cases = (("sigmoid", 0.1, ln2), ("sigmoid", 0.5, ln2), ("hinge", 0.1, 1), ("ipo", 0.25, 4))
    for loss, beta, expected in cases:
        project(dpo={"loss": loss, "beta": beta})
        dpo.main()
        first = curve("dpo").row(0, named=True)
        assert first["loss"] == pytest.approx(expected, abs=1e-4), loss
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    project(dpo={"sft_weight": 0.5})
    dpo.main()
    assert curve("dpo")["loss"][0] > ln2 + 0.1


def test_dpo_moves_the_policy_towards_the_chosen_answers(project):
    project(dpo={"epochs": 3, "learning_rate": 0.02})
    sft.main()
    dpo.main()
    margins, losses = (curve("dpo")[name].drop_nulls() for name in ("rewards/margins", "loss"))
    assert margins[-1] > margins[0] + 0.2 and losses[-1] < math.log(2)
