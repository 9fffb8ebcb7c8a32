"""The honest cheap baseline: a linear classifier on character n-grams of the prompt, deciding refuse or comply."""

import polars as pl


def train_guard(train: pl.DataFrame):
    """A classifier `guard(prompts) -> list[bool]` (True = refuse) trained on the unique prompts of `train`.

    Its columns are prompt, expected and other_prompt: the guard is shown both representations of every substance, as the policies are.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    asked = [
        train.select(prompt=column, expected="expected") for column in ("prompt", "other_prompt")
    ]
    prompts = pl.concat(asked).drop_nulls().unique().sort("prompt", "expected")
    guard = make_pipeline(
        TfidfVectorizer(
            analyzer="char_wb", ngram_range=(1, 5), lowercase=False, sublinear_tf=True, min_df=2
        ),
        LogisticRegression(C=20.0, max_iter=1000),
    )
    guard.fit(prompts["prompt"].to_list(), (prompts["expected"] == "refuse").to_list())
    return lambda texts: [bool(refuse) for refuse in guard.predict(list(texts))]
