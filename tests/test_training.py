"""Training on a few in-memory rows with a Llama of one layer: encoding, rows, losses, and the same weights every time."""

import math
import random
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.dag import ROOT
from stages.core.errors import LibraError
from stages.local.generate import greedy
from stages.local.ngram_guard import train_guard
from stages.preference.soup import mean_curve
from stages.training import data, encode, trainer
from stages.training.models import ModelParams, load_policy, new_model, train_tokenizer

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
DPO = {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "bpe_dropout": 0.0, "other_representation": 0.0, "beta": 0.1, "loss": "sigmoid", "sft_weight": 0.0,
       "pairs": "matched", "answers": 1, "label_smoothing": 0.0, "soup": 1}  # fmt: skip
SIZE = ModelParams(**PARAMS["model"] | TINY)
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


def table(seeds=8, prompts=2):
    """Triplets of `seeds` requests, half to refuse; `prompts` prompts x 3 chosen, each with one rejected."""
    rows = []
    for s in range(seeds):
        refuse = s % 2 == 1
        for p in range(prompts):
            for c in range(3):
                rows.append(
                    {
                        "seed_id": f"s{s}",
                        "substance_id": f"s{s}",
                        "representation": "text",
                        "prompt_id": f"s{s}-p{p}",
                        "chosen_id": f"s{s}-c{c}",
                        "rejected_id": f"s{s}-r{(p + c) % 3}",
                        "prompt": f"{'Please make' if refuse else 'How is it kept,'} substance {'xyzé'[p % 4] * (s + 1)}?",
                        "chosen": (NO if refuse else HELP)[c],
                        "rejected": (OPENER if refuse else NO)[(p + c) % 3],
                        "expected": "refuse" if refuse else "comply",
                    }
                )
    return pl.DataFrame(rows)


def substances(seeds=8):
    """What `table` asks about, by the name "substance"; the first has no structure."""
    return pl.DataFrame(
        [
            {"substance_id": f"s{s}", "name": "substance", "smiles": "C" * s + "O" if s else None}
            for s in range(seeds)
        ]
    )


def texts():
    return [
        text for role in ("prompt", "chosen", "rejected") for text in table()[role].unique().sort()
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts(), SIZE.vocab_size)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(1)
    return new_model(SIZE, tokenizer)


@pytest.fixture()
def project(tmp_path, monkeypatch):
    """A folder in which `sft` and `dpo` can run: `project(dpo={...})` writes params with these changes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/librachemqa").mkdir(parents=True)
    table().write_parquet("data/librachemqa/train.parquet")
    table(2, 1).write_parquet("data/librachemqa/validation.parquet")
    substances().write_parquet("data/substances.parquet")
    stages = {
        "sft": {"deps": ["data/librachemqa"], "params": ["random_seed", "train", "model", "sft"]},
        "dpo": {
            "deps": ["data/librachemqa", "models/sft"],
            "params": ["random_seed", "train", "model", "dpo"],
        },
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))

    @contextmanager
    def no_store(stage, params, inputs):
        class Record:
            def metrics(self, values):
                assert values["data"]["over_long"] == 0

            def curve(self, rows):
                assert rows and "eval_loss" in rows[-1]

            def model(self, folder, name, base_folder):
                assert (folder, name) in (("models/sft", "libra-sft"), ("models/dpo", "libra"))

        yield Record()

    monkeypatch.setattr("stages.core.tracking.run", no_store)

    def write(random_seed=7, **changes):
        params = {
            "random_seed": random_seed,
            "train": {"processes": 1},
            "model": SIZE.model_dump(),
            "sft": PARAMS["sft"] | SFT,
            "dpo": PARAMS["dpo"] | DPO,
        }
        for section, values in changes.items():
            params[section] |= values
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        return tmp_path

    return write


def test_prompt_and_answer_are_the_template_s_text(tokenizer):
    question, reply = "What is 1,2-ethanediol °é?", "A glycol. Ünïcode too."
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    asked, answer = (
        encode.encode_prompts(tokenizer, [question])[0],
        encode.encode_answers(tokenizer, [reply])[0],
    )
    whole = "<|user|>What is 1,2-ethanediol °é?<|end|><|assistant|>A glycol. Ünïcode too.<|end|>"
    assert (
        tokenizer.apply_chat_template(turns, tokenize=False)
        == whole
        == tokenizer.decode(asked + answer)
    )
    assert tokenizer.decode(asked) == "<|user|>What is 1,2-ethanediol °é?<|end|><|assistant|>"
    assert (
        answer[-1] == tokenizer.eos_token_id
        and asked + answer == tokenizer.apply_chat_template(turns)["input_ids"]
    )


def test_the_tokenizer_knows_every_byte_and_keeps_digits_apart(tokenizer):
    text = "C[C@@H](N)C(=O)O \u2603 \U0001f9ea \x00 12.50"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and len(tokenizer) <= SIZE.vocab_size
    assert [tokenizer.decode([i]) for i in ids[-5:]] == ["1", "2", ".", "5", "0"]
    assert train_tokenizer(texts(), SIZE.vocab_size).get_vocab() == tokenizer.get_vocab()


def test_a_word_counts_once_for_the_tokenizer_however_often_it_stands_there(tokenizer):
    often = texts() + texts()[:3] * 50
    assert train_tokenizer(often, SIZE.vocab_size).get_vocab() == tokenizer.get_vocab()


def test_bpe_dropout_cuts_a_prompt_another_way_each_time(tokenizer):
    prompts = table()["prompt"].unique().sort().to_list() + ["12,5 °é <|end|>?", "x"]
    usual = encode.encode_prompts(tokenizer, prompts)
    rng = random.Random(1)
    assert [encode.BpeDropout(tokenizer, 0.0).prompt(text, rng, 999) for text in prompts] == usual
    half = encode.BpeDropout(tokenizer, 0.5)
    drawn = [[half.prompt(text, random.Random(i), 999) for text in prompts] for i in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [tokenizer.decode(ids) for ids in drawn[0]] == [tokenizer.decode(ids) for ids in usual]
    longer = [len(ids) - len(before) for ids, before in zip(drawn[0], usual, strict=True)]
    assert min(longer) == 0 and max(longer) > 3
    letters = encode.BpeDropout(tokenizer, 0.999).prompt(prompts[0], random.Random(1), 999)
    assert len(letters) == len(prompts[0].encode()) + 3, "all merges left out: bytes"
    assert half.prompt(prompts[0], random.Random(1), len(usual[0])) == usual[0], (
        "too long: as usual"
    )


def test_bpe_dropout_is_for_byte_level_bpe():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    )
    with pytest.raises(
        LibraError, match="bpe_dropout is for byte-level BPE tokenizers.*; set it to 0"
    ):
        encode.BpeDropout(words, 0.1)


def test_an_opener_ends_before_its_mark(tokenizer):
    ids = encode.encode_rejected(
        tokenizer, ["Sure. [details withheld]", "No.", "[details withheld] is a mark."]
    )
    assert [tokenizer.decode(one) for one in ids] == [
        "Sure.",
        "No.<|end|>",
        "[details withheld] is a mark.<|end|>",
    ]
    assert [tokenizer.decode(one) for one in encode.encode_rejected(tokenizer, ["No."])] == [
        "No.<|end|>"
    ], "no opener at all"


def test_a_template_that_changes_the_prompt_is_refused(tokenizer):
    import copy

    odd = copy.deepcopy(tokenizer)
    odd.chat_template = "{% if add_generation_prompt %}Q: {% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(LibraError, match="renders a prompt differently once it is answered"):
        encode.encode_answers(odd, ["a"])


@pytest.mark.parametrize(("count", "batch"), [(0, 4), (1, 4), (1000, 4), (1003, 16)])
def test_length_grouping_is_a_seeded_permutation(count, batch):
    lengths = [random.Random(i).randint(1, 90) for i in range(count)]
    order = encode.length_grouped(lengths, batch, random.Random("a"))
    assert sorted(order) == list(range(count)) and order == encode.length_grouped(
        lengths, batch, random.Random("a")
    )
    if count > 1:
        assert order != encode.length_grouped(lengths, batch, random.Random("b"))
        batches = [
            [lengths[j] for j in order[i : i + batch]] for i in range(0, count - batch, batch)
        ]
        assert sum(max(part) - min(part) for part in batches) / len(batches) < 10


def decoded(tokenizer, ids):
    return tokenizer.decode(ids).split("<|assistant|>")


def test_sft_shows_each_prompt_once_an_epoch_with_another_answer(tokenizer):
    rows, counts = data.sft_rows(table(), tokenizer, 3, batch_size=4, max_length=128, random_seed=7)
    assert len(rows) == 3 * 16 and counts == {"rows": 48, "over_long": 0}
    epochs = [
        [tuple(decoded(tokenizer, ids)) for ids in rows["input_ids"][i : i + 16]]
        for i in (0, 16, 32)
    ]
    assert all(len({prompt for prompt, _ in epoch}) == 16 for epoch in epochs)
    assert (
        len({pair for epoch in epochs for pair in epoch}) == 48
    )  # 3 chosen in 3 epochs: never the same pair again
    assert {answer.removesuffix("<|end|>") for epoch in epochs for _, answer in epoch} == {
        *HELP,
        *NO,
    }


def test_a_prompt_has_another_one_with_the_other_representation(tmp_path, monkeypatch):
    """The SMILES for the name, the name for the SMILES, and nothing else is changed; none where there is no structure."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/librachemqa").mkdir(parents=True)
    smiles = pl.col("seed_id").is_in(["s3", "s4"])
    shown = pl.when(pl.col("seed_id") == "s3").then(pl.lit("C")).otherwise(pl.lit("CCCCO"))
    asked = table().with_columns(
        representation=pl.when(smiles).then(pl.lit("smiles")).otherwise("representation"),
        prompt=pl.when(smiles)
        .then(pl.lit("Can the substance ") + shown + pl.lit(" be sold?"))
        .otherwise("prompt"),
    )
    asked.write_parquet("data/librachemqa/train.parquet")
    known = pl.concat([substances(3), substances().slice(3).with_columns(name=pl.lit("propanol"))])
    known.with_columns(smiles=pl.col("smiles").replace("CCCO", "C")).write_parquet(
        "data/substances.parquet"
    )
    read = data.triplets("train")
    assert read.drop("other_prompt").equals(asked.select(read.columns[:-1]))
    other = dict(read.select("prompt_id", "other_prompt").iter_rows())
    assert other["s0-p0"] is None
    assert other["s1-p1"] == "Please make CO yy?"
    assert other["s2-p0"] == "How is it kept, CCO xxx?"
    assert other["s3-p0"] == other["s4-p1"] == "Can the substance propanol be sold?"


@pytest.fixture()
def both_ways():
    """`table` with every prompt's other one, as `data.triplets` adds it; the first seed has none."""
    joined = table().join(substances().drop("name"), on="substance_id")
    other = pl.struct("prompt", "smiles").map_elements(
        lambda row: row["smiles"] and row["prompt"].replace("substance", row["smiles"]),
        return_dtype=pl.String,
    )
    return joined.with_columns(other_prompt=other).drop("smiles")


CHANGES = {
    "sft": {"epochs": 3, "batch_size": 8, "learning_rate": 0.02, "bpe_dropout": 0.3, "other_representation": 0.5, "prompt_loss": 0.9},
    "dpo": {"epochs": 2, "batch_size": 8, "answers": 2, "pairs": "random", "learning_rate": 0.02, "bpe_dropout": 0.3,
            "other_representation": 0.5, "beta": 0.5, "loss": "ipo", "label_smoothing": 0.2, "sft_weight": 1.0, "soup": 2},
}  # fmt: skip


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_every_param_of_a_trainer_makes_other_weights(project, stage):
    """TRL takes `label_smoothing` with any loss, and leaves it out of account with `sigmoid`."""
    from stages import dpo, sft

    robust = {"dpo": {"loss": "robust", "label_smoothing": 0.1}} if stage == "dpo" else {}
    folder = project(**robust)
    sft.main()
    made = {}
    for changes in [{}, *({key: value} for key, value in CHANGES[stage].items())]:
        if changes.get("loss"):
            changes |= {"label_smoothing": 0.0}
        project(**{stage: robust.get(stage, {}) | changes})
        (sft if stage == "sft" else dpo).main()
        made[str(changes)] = (folder / "models" / stage / "model.safetensors").read_bytes()
    assert set(CHANGES[stage]) == set(PARAMS[stage]), "a param that isn't tried here"
    assert len(set(made.values())) == len(made), [
        key for key, weights in made.items() if list(made.values()).count(weights) > 1
    ]


def test_a_soup_is_the_mean_of_policies_trained_on_epochs_of_their_own(project, monkeypatch):
    """Against each of them by itself, as the only policy of a run that sees its epochs."""
    from stages import dpo, sft

    own = {"epochs": 2, "bpe_dropout": 0.2, "sft_weight": 1.0}
    folder = project(dpo=own | {"soup": 3})
    sft.main()
    recorded = []
    record = SimpleNamespace(
        metrics=recorded.append, curve=recorded.append, model=lambda folder, name, base_folder: None
    )
    monkeypatch.setattr("stages.core.tracking.run", lambda *_, **__: nullcontext(record))
    dpo.main()
    assert recorded[0] == {"data": {"pairs": 3 * 2 * 16, "over_long": 0, "equal_when_cut": 0}}, (
        "of all three"
    )
    assert len(recorded) == 2 and len(recorded[1]) == 2 * 16 // 4
    found = load_file(folder / "models/dpo/model.safetensors")
    told = pl.read_csv(folder / "models/dpo/training.csv")
    shown, weights, curves, rows = data.dpo_rows, [], [], []

    def of_member(member):
        def dpo_rows(table, tokenizer, epochs, **how):
            more = len(epochs) * member if "pairs" in how else 0
            made = shown(table, tokenizer, range(more, more + len(epochs)), **how)
            rows.append(made[0].to_list())
            return made

        return dpo_rows

    project(dpo=own)
    for member in range(3):
        monkeypatch.setattr(data, "dpo_rows", of_member(member))
        dpo.main()
        weights.append(load_file(folder / "models/dpo/model.safetensors"))
        curves.append(pl.read_csv(folder / "models/dpo/training.csv"))
    assert rows[0] != rows[2] != rows[4] != rows[0] and rows[1] == rows[3] == rows[5], (
        "other train rows, the same validation rows"
    )
    assert found.keys() == weights[0].keys() and "lm_head.weight" not in found, (
        "tied weights stand there once"
    )
    assert not torch.equal(weights[0]["model.norm.weight"], weights[1]["model.norm.weight"])
    for name, values in found.items():
        assert torch.equal(values, (weights[0][name] + weights[1][name] + weights[2][name]) / 3), (
            name
        )
    assert (
        told.columns == curves[0].columns and told["step"].to_list() == curves[0]["step"].to_list()
    )
    for column in told.columns:
        for mean, *of_each in zip(told[column], *(curve[column] for curve in curves), strict=True):
            assert mean == (
                None if of_each[0] is None else pytest.approx(sum(of_each) / 3, abs=2e-6)
            ), column


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


def test_label_smoothing_is_for_the_loss_that_heeds_it(project):
    from stages import dpo

    for loss in ("sigmoid", "ipo", "hinge"):
        project(dpo={"loss": loss, "label_smoothing": 0.1})
        with pytest.raises(
            LibraError, match=f"label_smoothing is for the loss robust; with {loss} set it to 0"
        ):
            dpo.main()


@pytest.mark.parametrize("bpe_dropout", [0.0, 0.2])
def test_a_share_of_prompts_is_asked_with_the_other_representation(
    tokenizer, both_ways, bpe_dropout
):
    common = {"batch_size": 4, "max_length": 128, "random_seed": 7, "bpe_dropout": bpe_dropout}
    makers = {
        "sft": lambda share: [
            tokenizer.decode(ids)
            for ids in data.sft_rows(both_ways, tokenizer, 9, other_representation=share, **common)[
                0
            ]["input_ids"]
        ],
        "dpo": lambda share: [
            tokenizer.decode(row["prompt_ids"] + row["chosen_ids"])
            for row in data.dpo_rows(
                both_ways, tokenizer, range(9), other_representation=share, **common
            )[0]
        ],
    }
    refused = dict(both_ways.select("prompt", pl.col("expected") == "refuse").iter_rows())
    refused |= dict(
        both_ways.select("other_prompt", pl.col("expected") == "refuse").drop_nulls().iter_rows()
    )
    for name, make in makers.items():
        for share, least, most in (
            (0.0, 0.0, 0.0),
            (0.5, 0.35, 0.55),
            (1.0, 7 / 8, 7 / 8),
        ):  # an eighth has no structure
            shown = make(share)
            assert len(shown) == 9 * 16
            assert least <= sum("substance" not in text for text in shown) / len(shown) <= most, (
                name,
                share,
            )
            pairs = [text.removeprefix("<|user|>").split("<|end|><|assistant|>") for text in shown]
            assert all(
                (answer.removesuffix("<|end|>") in NO) == refused[prompt]
                for prompt, answer in pairs
            )
        assert make(0.5) == make(0.5)


def test_sft_labels_the_answer_and_a_share_of_the_prompt(tokenizer):
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")

    def shares(prompt_loss):
        rows, _ = data.sft_rows(
            table(),
            tokenizer,
            3,
            batch_size=4,
            max_length=128,
            prompt_loss=prompt_loss,
            random_seed=7,
        )
        labelled = total = 0
        for row in rows:
            start = row["input_ids"].index(assistant) + 1
            assert row["labels"][start:] == row["input_ids"][start:]
            assert all(
                label in (-100, token)
                for label, token in zip(row["labels"], row["input_ids"], strict=True)
            )
            labelled += sum(label != -100 for label in row["labels"][:start])
            total += start
        return labelled / total

    assert shares(0.0) == 0 and shares(1.0) == 1 and 0.2 < shares(0.3) < 0.4


def test_dpo_pairs_vary_from_pass_to_pass(tokenizer):
    rows, counts = data.dpo_rows(
        table(), tokenizer, range(3), batch_size=4, max_length=128, random_seed=7
    )
    assert counts == {"pairs": 48, "over_long": 0, "equal_when_cut": 0}
    assert len(rows) == 48 and rows.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    shown = [tuple(tokenizer.decode(row[name]) for name in rows.column_names) for row in rows]
    assert len(set(shown)) == 48
    for turn in (0, 16, 32):
        assert len({prompt for prompt, _, _ in shown[turn : turn + 16]}) == 16
    allowed = {
        ("<|user|>" + row["prompt"] + "<|end|><|assistant|>", row["chosen"] + "<|end|>",
         row["rejected"].removesuffix(" [details withheld]") if row["expected"] == "refuse" else row["rejected"] + "<|end|>")
        for row in table().iter_rows(named=True)
    }  # fmt: skip
    assert set(shown) == allowed


def shown_pairs(tokenizer, pairs, answers, epochs=1):
    """(prompt, chosen, rejected) of each row, in training order."""
    rows, _ = data.dpo_rows(
        table(),
        tokenizer,
        range(epochs),
        batch_size=4,
        max_length=128,
        random_seed=7,
        pairs=pairs,
        answers=answers,
    )
    return [
        tuple(tokenizer.decode(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        for row in rows
    ]


def test_a_grid_pairs_every_chosen_answer_with_every_rejected_one(tokenizer):
    shown = shown_pairs(tokenizer, "grid", 3)
    assert len(shown) == len(set(shown)) == 16 * 9
    for start in range(
        0, len(shown), 9
    ):  # one prompt after the other, so that a step holds whole grids
        prompts, chosen, rejected = map(set, zip(*shown[start : start + 9], strict=True))
        assert (len(prompts), len(chosen), len(rejected)) == (1, 3, 3)
    matched = shown_pairs(tokenizer, "matched", 3)
    assert sorted(matched) == sorted(shown_pairs(tokenizer, "matched", 1, epochs=3)) and set(
        matched
    ) < set(shown)
    assert sorted(shown_pairs(tokenizer, "grid", 1)) == sorted(shown_pairs(tokenizer, "matched", 1))


def test_random_pairs_are_of_the_grid_and_no_one_s_only(tokenizer):
    grid, matched = (
        set(shown_pairs(tokenizer, "grid", 3)),
        set(shown_pairs(tokenizer, "matched", 3)),
    )
    shown = shown_pairs(tokenizer, "random", 3)
    assert len(shown) == 16 * 3 and set(shown) < grid
    assert set(shown) & matched and set(shown) - matched


def test_more_answers_than_a_prompt_has_are_named(tokenizer):
    with pytest.raises(
        LibraError,
        match=r"^dpo.answers is 4, but a prompt has 3 triplets; lower it, or raise combine.triplets_per_seed",
    ):
        shown_pairs(tokenizer, "grid", 4)


def test_pairs_that_the_cut_makes_equal_are_counted_and_left_out(tokenizer, capsys):
    """A common start longer than the room: the two answers of such a pair are one."""
    start = "The same long start of both answers, word for word, until there is no room left. "
    s0 = pl.col("seed_id") == "s0"
    both = table().with_columns(
        pl.when(s0).then(pl.lit(start) + pl.col(side)).otherwise(pl.col(side)).alias(side)
        for side in ("chosen", "rejected")
    )
    common = {"batch_size": 4, "random_seed": 7}
    whole, counts = data.dpo_rows(both, tokenizer, range(1), max_length=256, **common)
    assert counts == {"pairs": 16, "over_long": 0, "equal_when_cut": 0} and len(whole) == 16
    longest = max(len(row["prompt_ids"]) for row in whole)
    cut, counts = data.dpo_rows(both, tokenizer, range(1), max_length=longest + 20, **common)
    assert counts["equal_when_cut"] == 2 and counts["over_long"] >= 2 and len(cut) == 14
    said = capsys.readouterr().out
    assert (
        "2 of 16 pairs have equal answers once cut, and are left out" in said
        and "of 16 pairs are over model.max_length" in said
    )
    alike = both.filter(s0)
    with pytest.raises(LibraError, match="leaves no pair with two different answers; raise it"):
        data.dpo_rows(alike, tokenizer, range(1), max_length=longest + 20, **common)


def test_rows_depend_on_the_random_seed_and_not_on_the_table_s_order(tokenizer):
    shuffled = table().sample(fraction=1.0, shuffle=True, seed=3)
    common = {"batch_size": 4, "max_length": 128}
    for make in (
        lambda rows, seed: data.sft_rows(
            rows, tokenizer, 2, prompt_loss=0.1, bpe_dropout=0.2, random_seed=seed, **common
        ),
        lambda rows, seed: data.dpo_rows(
            rows, tokenizer, range(2), bpe_dropout=0.2, random_seed=seed, **common
        ),
    ):
        one, same, other = (
            make(*given)[0].to_list() for given in ((table(), 7), (shuffled, 7), (table(), 8))
        )
        assert one == same != other


def test_more_epochs_than_pairs_begin_again(tokenizer):
    """A prompt has three pairs: each of them once in three epochs, and the fourth epoch is the first one's."""
    prompts = table()["prompt_id"].n_unique()
    made, _ = data.dpo_rows(
        table(), tokenizer, range(4), batch_size=4, max_length=128, random_seed=7
    )
    rows = [str(row) for row in made]
    assert len(rows) == 4 * prompts and len(set(rows[: 3 * prompts])) == 3 * prompts
    assert sorted(rows[3 * prompts :]) == sorted(rows[:prompts])


def test_data_that_does_not_fit_is_named(tokenizer, tmp_path, monkeypatch, capsys):
    long = table().with_columns(prompt=pl.col("prompt") + " and so on" * 30)
    with pytest.raises(
        LibraError, match=r"^model.max_length is 64 tokens, but a prompt alone has \d+; raise it"
    ):
        data.sft_rows(long, tokenizer, 1, batch_size=4, max_length=64, random_seed=7)
    with pytest.raises(LibraError, match="model.max_length is 64 tokens"):
        data.dpo_rows(long, tokenizer, range(1), batch_size=4, max_length=64, random_seed=7)
    wordy = table().with_columns(chosen=pl.col("chosen") + " and so on" * 30)
    _, counts = data.sft_rows(wordy, tokenizer, 1, batch_size=4, max_length=96, random_seed=7)
    assert counts == {"rows": 16, "over_long": 16}
    assert (
        "16 of 16 rows are over model.max_length = 96 tokens and are cut" in capsys.readouterr().out
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        LibraError, match="data/librachemqa/train.parquet is not here; run `dvc repro`"
    ):
        data.triplets("train")
    (tmp_path / "data/librachemqa").mkdir(parents=True)
    table().clear().write_parquet("data/librachemqa/validation.parquet")
    with pytest.raises(LibraError, match="data/librachemqa/validation.parquet has no rows"):
        data.triplets("validation")
    table().write_parquet("data/librachemqa/train.parquet")
    with pytest.raises(LibraError, match="data/substances.parquet is not here; run `dvc repro`"):
        data.triplets("train")


def test_a_model_of_impossible_size_is_named(tokenizer):
    with pytest.raises(
        LibraError, match=r"model.hidden_size \(32\) must be a multiple of model.heads \(3\)"
    ):
        new_model(SIZE.model_copy(update={"heads": 3}), tokenizer)


def test_a_policy_loads_as_it_was_saved(model, tokenizer, tmp_path):
    folder = tmp_path / "models/sft"
    with pytest.raises(LibraError, match=r"holds no model; run `dvc repro sft` first"):
        load_policy(folder)
    folder.mkdir(parents=True)
    (folder / "old").touch()
    trainer.save_policy(
        model, tokenizer, [{"step": 1, "loss": 0.5}, {"step": 2, "eval_loss": 0.25}], folder
    )
    assert [path.name for path in folder.parent.iterdir()] == ["sft"] and not (
        folder / "old"
    ).exists()
    assert (
        folder / "training.csv"
    ).read_text() == "step,loss,eval_loss\n1,0.500000,\n2,,0.250000\n"
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".csv", ".safetensors"}
    loaded, words = load_policy(folder)
    saved = load_file(folder / "model.safetensors")
    assert all(
        torch.equal(value, saved[name])
        for name, value in loaded.state_dict().items()
        if name in saved
    )
    assert all(
        torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items()
    )
    text = "<|user|>How is it kept?<|end|><|assistant|>"
    assert (
        words(text)["input_ids"] == tokenizer(text)["input_ids"]
        and words.chat_template == tokenizer.chat_template
    )
    assert words.padding_side == "left" and loaded.dtype == torch.float32


def test_weights_from_elsewhere_are_loaded_in_the_type_they_are_written_in(
    model, tokenizer, tmp_path
):
    """FSDP's model is in float32, the weights gathered of it needn't be: loaded as float32 they would take twice the memory."""
    halves = {name: values.bfloat16() for name, values in model.state_dict().items()}
    trainer.save_policy(
        model, tokenizer, [{"step": 1, "loss": 0.5}], tmp_path / "sft", dict(halves)
    )
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    assert loaded.dtype == torch.bfloat16 and all(
        torch.equal(values, halves[name]) for name, values in loaded.state_dict().items()
    )


def test_a_failure_while_saving_leaves_the_old_policy(model, tokenizer, tmp_path):
    folder = tmp_path / "sft"
    trainer.save_policy(model, tokenizer, [{"step": 1, "loss": 0.5}], folder)
    with pytest.raises(TypeError):
        trainer.save_policy(model, tokenizer, [{"step": 1, "loss": 0.5}, 5], folder)
    assert (folder / "model.safetensors").exists() and [
        path.name for path in tmp_path.iterdir()
    ] == ["sft"]


def test_greedy_answers_do_not_depend_on_the_batch(project):
    """What `respond` writes is the same for any respond.batch_size."""
    from stages import sft

    project(sft={"epochs": 40, "learning_rate": 0.02})
    sft.main()
    policy = load_policy("models/sft")
    prompts = table()["prompt"].unique().sort().to_list()
    alone = greedy(*policy, prompts, 60, 1, "test")
    assert (
        alone == greedy(*policy, prompts, 60, 3, "test") == greedy(*policy, prompts, 60, 16, "test")
    )
    assert len(set(alone)) > 1 and {finish for _, finish in alone} == {"stop"}
    cut = greedy(*policy, prompts, 2, 5, "test")
    assert {finish for _, finish in cut} == {"length"}
    assert all(answer.startswith(start) for (answer, _), (start, _) in zip(alone, cut, strict=True))


def test_the_guard_learns_from_the_train_split_and_guesses(both_ways):
    guard = train_guard(table(40).with_columns(other_prompt=pl.lit(None, pl.String)))
    assert guard(["Please make substance xx?", "How is it kept, substance xx?"]) == [True, False]
    assert guard(table(40)["prompt"]) == (table(40)["expected"] == "refuse").to_list()
    one_way = both_ways.with_columns(
        prompt=pl.lit("about ") + pl.col("seed_id")
    )  # says nothing: only the other prompts do
    there = one_way.filter(pl.col("other_prompt").is_not_null())
    assert train_guard(one_way)(there["other_prompt"]) == (there["expected"] == "refuse").to_list()


def test_training_twice_gives_the_same_weights(project):
    """`sft` and `dpo` as they run in the pipeline, twice: the same bytes, and other ones with another random seed."""
    from stages import dpo, sft

    folder = project()
    made = []
    for random_seed in (7, 7, 8):
        project(random_seed)
        sft.main()
        dpo.main()
        files = sorted(path for path in (folder / "models").rglob("*") if path.is_file())
        made.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    assert made[0] == made[1]
    weights = [f"models/{name}/model.safetensors" for name in ("sft", "dpo")]
    assert (
        all(made[0][name] != made[2][name] for name in weights)
        and made[0][weights[0]] != made[0][weights[1]]
    )
    assert {path.split("/")[1] for path in made[0]} == {"sft", "dpo"}, (
        "nothing but the two policies is left behind"
    )
    curve = pl.read_csv(folder / "models/sft/training.csv")
    assert (
        curve["loss"].drop_nulls()[-1] < curve["loss"].drop_nulls()[0] and curve["step"].is_sorted()
    )
    assert curve["eval_loss"].drop_nulls().len() >= 2


def test_the_first_step_has_the_loss_of_a_policy_that_equals_its_reference(project):
    """Both rewards are 0 before the first update: ln 2 for sigmoid, 1 for hinge, (1 / 2 beta)^2 for ipo."""
    from stages import dpo, sft

    folder = project()
    sft.main()
    ln2 = math.log(2)
    for loss, beta, expected in (
        ("sigmoid", 0.1, ln2),
        ("sigmoid", 0.5, ln2),
        ("hinge", 0.1, 1),
        ("ipo", 0.25, 4),
    ):
        project(dpo={"loss": loss, "beta": beta})
        dpo.main()
        first = pl.read_csv(folder / "models/dpo/training.csv").row(0, named=True)
        assert first["loss"] == pytest.approx(expected, abs=1e-4), loss
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    project(dpo={"sft_weight": 0.5})
    dpo.main()
    assert pl.read_csv(folder / "models/dpo/training.csv")["loss"][0] > math.log(2) + 0.1


def test_dpo_moves_the_policy_towards_the_chosen(project):
    from stages import dpo, sft

    folder = project(dpo={"epochs": 3, "learning_rate": 0.02})
    sft.main()
    dpo.main()
    curve = pl.read_csv(folder / "models/dpo/training.csv")
    margins = curve["rewards/margins"].drop_nulls()
    assert margins[-1] > margins[0] + 0.2 and curve["loss"].drop_nulls()[-1] < math.log(2)


@pytest.mark.parametrize(("thin", "thinned"), [(0.0, False), (0.75, True), (1.1, True)])
def test_greedy_text_is_that_of_generate_however_batches_are_thinned(
    tokenizer, thin, thinned, monkeypatch
):
    from transformers import DynamicCache

    selections, select = [], DynamicCache.batch_select_indices
    monkeypatch.setattr(
        DynamicCache,
        "batch_select_indices",
        lambda self, rows: selections.append(len(rows)) or select(self, rows),
    )
    monkeypatch.setattr("stages.local.generate.THIN", thin)
    prompts = [f"How is substance {'xyz'[n % 3] * (1 + n % 5)} kept, {n}?" for n in range(23)]
    torch.manual_seed(3)
    policy = new_model(SIZE.model_copy(update={"initializer_range": 0.3}), tokenizer)

    def alone(prompt):
        ids = torch.tensor(encode.encode_prompts(tokenizer, [prompt]))
        return policy.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )[0, ids.shape[1] :].tolist()

    said = [
        alone(prompt) for prompt in prompts
    ]  # an untrained policy hardly ever ends: a token of half the answers is to end them
    middle = min(
        {token for tokens in said for token in tokens},
        key=lambda token: (abs(sum(token in tokens for tokens in said) - 11), token),
    )
    policy.generation_config.eos_token_id = ends = [tokenizer.eos_token_id, middle]
    wanted = []
    for tokens in map(alone, prompts):
        kept = [token for token in tokens if token not in ends]
        wanted.append(
            (
                tokenizer.decode(kept, skip_special_tokens=True).strip(),
                "length" if len(kept) == 12 else "stop",
            )
        )
    assert {finish for _, finish in wanted} == {"stop", "length"}
    assert greedy(policy, tokenizer, prompts, 12, 8, "x") == wanted
    assert bool(selections) == thinned
