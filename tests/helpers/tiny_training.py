"""A few triplets and a Llama of one layer: what `sft` and `dpo` train in tests, in seconds."""

from contextlib import contextmanager

import polars as pl
import yaml

from helpers.dag import ROOT
from stages.training.model_params import ModelParams

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
TINY = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "layers": 1,
    "heads": 2,
    "max_length": 128,
}
SFT = {
    "epochs": 2,
    "batch_size": 4,
    "learning_rate": 0.01,
    "bpe_dropout": 0.0,
    "other_representation": 0.0,
    "prompt_loss": 0.1,
}
DPO = {
    "epochs": 1,
    "batch_size": 4,
    "learning_rate": 0.01,
    "bpe_dropout": 0.0,
    "other_representation": 0.0,
    "beta": 0.1,
    "loss": "sigmoid",
    "sft_weight": 0.0,
    "pairs": "matched",
    "answers": 1,
    "label_smoothing": 0.0,
    "soup": 1,
}
MODEL_PARAMS = ModelParams(**PARAMS["model"] | TINY)

HELP = [
    "Keep it cool, dry and away from flames.",
    "Store it in a closed bottle.",
    "Wear gloves and goggles.",
]
NO = ["I can't help with that.", "No, that is not something I can do.", "Sorry, I won't."]
OPENER = [
    "Sure, this is how: [details withheld]",
    "Of course. [details withheld]",
    "Here you go: [details withheld]",
]


def table(seeds=8, prompts=2) -> pl.DataFrame:
    """Triplets of `seeds` requests, half of them to refuse.

    `prompts` prompts x 3 chosen answers each, every one with one rejected answer.
    """
    rows = []
    for s in range(seeds):
        refuse = s % 2 == 1
        question = "Please make" if refuse else "How is it kept,"
        for p in range(prompts):
            for c in range(3):
                r = (p + c) % 3
                rows.append(
                    {
                        "seed_id": f"s{s}",
                        "substance_id": f"s{s}",
                        "representation": "text",
                        "prompt_id": f"s{s}-p{p}",
                        "chosen_id": f"s{s}-c{c}",
                        "rejected_id": f"s{s}-r{r}",
                        "prompt": f"{question} substance {'xyzé'[p % 4] * (s + 1)}?",
                        "chosen": (NO if refuse else HELP)[c],
                        "rejected": (OPENER if refuse else NO)[r],
                        "expected": "refuse" if refuse else "comply",
                    }
                )
    return pl.DataFrame(rows)


def substances(seeds=8) -> pl.DataFrame:
    """The substances of `table`, all named "substance"; the first has no structure."""
    smiles = [None, *("C" * s + "O" for s in range(1, seeds))]
    rows = [
        {"substance_id": f"s{s}", "name": "substance", "smiles": smiles[s]} for s in range(seeds)
    ]
    return pl.DataFrame(rows)


def table_with_other_prompts() -> pl.DataFrame:
    """`table` with `other_prompt`, as `data.triplets` adds it; the first seed has none."""
    joined = table().join(substances().drop("name"), on="substance_id")
    other = pl.struct("prompt", "smiles").map_elements(
        lambda row: row["smiles"] and row["prompt"].replace("substance", row["smiles"]),
        return_dtype=pl.String,
    )
    return joined.with_columns(other_prompt=other).drop("smiles")


def texts() -> list[str]:
    """All distinct texts of `table`."""
    roles = ("prompt", "chosen", "rejected")
    return [text for role in roles for text in table()[role].unique().sort()]


def training_project(tmp_path, monkeypatch):
    """Make `tmp_path` a folder in which `sft` and `dpo` can run, and go there.

    Returns `write(random_seed=7, dpo={...}, ...)`, which writes params.yaml with these changes and
    returns the folder.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/librachemqa").mkdir(parents=True)
    table().write_parquet("data/librachemqa/train.parquet")
    table(2, 1).write_parquet("data/librachemqa/validation.parquet")
    substances().write_parquet("data/substances.parquet")
    sections = ["random_seed", "train", "model"]
    sft = {"deps": ["data/librachemqa"], "params": [*sections, "sft"]}
    dpo = {"deps": ["data/librachemqa", "models/sft"], "params": [*sections, "dpo"]}
    dag = {"stages": {"sft": sft, "dpo": dpo}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(dag))
    monkeypatch.setattr("stages.core.tracking.run", _checked_record)

    def write(random_seed=7, **changes):
        params = {
            "random_seed": random_seed,
            "train": {"processes": 1},
            "model": MODEL_PARAMS.model_dump(),
            "sft": PARAMS["sft"] | SFT,
            "dpo": PARAMS["dpo"] | DPO,
        }
        for section, values in changes.items():
            params[section] |= values
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        return tmp_path

    return write


@contextmanager
def _checked_record(stage, params, inputs):
    """In place of MLflow: checks what is logged."""

    class Record:
        def metrics(self, values):
            assert values["data"]["over_long"] == 0

        def curve(self, rows):
            assert rows and "eval_loss" in rows[-1]

        def model(self, folder, name, base_folder):
            assert (folder, name) in (("models/sft", "libra-sft"), ("models/dpo", "libra"))

    yield Record()
