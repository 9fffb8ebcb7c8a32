"""A cheap, honest baseline: a linear classifier on character n-grams of the prompt."""

import polars as pl


def train_guard(train: pl.DataFrame):
    """A classifier `guard(prompts) -> list[bool]` (True = refuse), fitted to `train`.

    `train` has the columns prompt, expected and other_prompt: like the policies, the guard sees
    both representations of every substance. Each distinct prompt counts once.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    columns = ("prompt", "other_prompt")
    labelled = pl.concat([train.select(prompt=name, expected="expected") for name in columns])
    prompts = labelled.drop_nulls().unique().sort("prompt", "expected")
    guard = make_pipeline(
        TfidfVectorizer(
            analyzer="char_wb", ngram_range=(1, 5), lowercase=False, sublinear_tf=True, min_df=2
        ),
        LogisticRegression(C=20.0, max_iter=1000),
    )
    guard.fit(prompts["prompt"].to_list(), (prompts["expected"] == "refuse").to_list())
    return lambda texts: [bool(refuse) for refuse in guard.predict(list(texts))]
