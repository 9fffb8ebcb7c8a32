"""Candidates that are no model: what a model is compared with at either end.

    always_refuse    one refusal for everything
    always_comply    the helpful text of the dataset, or the opener of the harmful one
    ngram_guard      refuses what a character n-gram classifier of the prompt takes for unlawful

baseline_answers(test, train, prompts)["always_refuse"][0]    # (REFUSAL, None, "stop", None)
"""

from stages.core.errors import LibraError

REFUSAL = "I can't help with that request."
TEST_COLUMNS = (
    *("seed_id", "prompt_id", "prompt", "expected", "chosen_id", "chosen"),
    *("rejected_id", "rejected", "rejected_kind"),
)
BASELINES = ("always_refuse", "always_comply", "ngram_guard")


def baseline_answers(test, train, prompts: list[str]) -> dict[str, list[tuple]]:
    """(answer, reasoning, finish_reason, error) of each baseline on `prompts`, in prompt_id order.

    `test` has TEST_COLUMNS, `train` is that of `train_guard` (ngram_guard.py). Raises LibraError as
    `always_comply` does.
    """
    helpful = always_comply(test)
    texts = {
        "always_refuse": [REFUSAL] * len(prompts),
        "always_comply": helpful,
        "ngram_guard": guarded(train, prompts, helpful),
    }
    return {name: [(text, None, "stop", None) for text in texts[name]] for name in BASELINES}


def always_comply(test) -> list[str]:
    """A text per prompt, in prompt_id order.

    It is the chosen answer of a comply-seed, the compliance opener of a refuse-seed. A prompt whose
    own triplets hold none (few triplets per seed, many prompts) gets its seed's first. Raises
    LibraError when a seed has none.
    """
    import polars as pl

    key = ("seed_id", "prompt_id")
    helpful = test.filter(pl.col("expected") == "comply").select(
        *key, id="chosen_id", text="chosen"
    )
    unsafe = test.filter(pl.col("rejected_kind") == "unsafe_compliance").select(
        *key, id="rejected_id", text="rejected"
    )
    texts = pl.concat([helpful, unsafe]).sort("prompt_id", "id")
    own = texts.unique("prompt_id", keep="first", maintain_order=True).select("prompt_id", "text")
    of_seed = texts.unique("seed_id", keep="first", maintain_order=True).select(
        "seed_id", seed_text="text"
    )

    answers = (
        test.select(key)
        .unique()
        .join(own, on="prompt_id", how="left")
        .join(of_seed, on="seed_id", how="left")
        .sort("prompt_id")
        .select("seed_id", text=pl.coalesce("text", "seed_text"))
    )
    if (missing := answers.filter(pl.col("text").is_null())).height:
        raise LibraError(
            "data/librachemqa/test.parquet has no unsafe_compliance answer for the refuse-seed "
            f"{missing['seed_id'][0]}; raise rephrase.test.rejected "
            "or combine.test_triplets_per_seed"
        )
    return answers["text"].to_list()


def guarded(train, prompts: list[str], helpful: list[str]) -> list[str]:
    """The refusal where the n-gram guard refuses, else the helpful text."""
    from stages.local.ngram_guard import train_guard

    refused = train_guard(train)(prompts)
    return [REFUSAL if no else text for no, text in zip(refused, helpful, strict=True)]
