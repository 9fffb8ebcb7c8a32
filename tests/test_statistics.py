"""Statistics: known values, values of other implementations, and simulations: 95 % intervals cover what they should.

The simulations share one set of draws, as the stage's rates do, with fixed seeds. Of 1,000 replicates the share covered has a
standard error of 0.007, of 2,000 one of 0.005, so a true 0.95 stays within 0.93 to 0.97.
"""

import hashlib
import re

import numpy as np
import polars as pl
import pytest
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score
from threadpoolctl import threadpool_limits

from stages.core.errors import LibraError
from stages.score import comparisons, trust
from stages.scoring import statistics
from stages.scoring.calibration import FEWEST, LABELS, calibrate, read_labels
from stages.scoring.rates import score

DRAWS = 1_000


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Thousands of small products: threads only get into each other's way."""
    with threadpool_limits(1):
        yield


def covered(ends, truth):
    lo, hi = statistics.interval(*ends, 0.95)
    return lo <= truth <= hi


# Rates and differences


def test_rate_interval_covers_its_truth():
    """Substances that differ (beta-binomial): the clustered interval covers the truth, one of rows as trials doesn't."""
    random, clusters, each, trials = np.random.default_rng(0), 200, 10, 2_000
    hits = random.binomial(each, random.beta(4, 2, size=(clusters, trials))).astype(float)
    found = statistics.resample(
        hits, np.full_like(hits, each), statistics.draws(clusters, DRAWS, 1)
    )
    (level,) = statistics.levels(1, DRAWS, 1)
    share = np.mean(
        [covered(statistics.bounds(*one, level), 4 / 6) for one in zip(*found, strict=True)]
    )
    assert 0.93 <= share <= 0.97
    rates = found[0]
    naive = np.mean(np.abs(rates - 4 / 6) <= 1.96 * np.sqrt(rates * (1 - rates) / clusters / each))
    assert naive < 0.85


@pytest.mark.parametrize("better", [0.0, 0.4])
def test_difference_covers_its_truth_and_its_p_is_honest(better):
    """Two candidates that find the same substances hard: pairing is what makes the interval narrow."""
    random, clusters, each, trials = np.random.default_rng(1), 200, 10, 1_000
    hard = random.normal(size=(clusters, trials)) * 1.5
    nodes, weight = np.polynomial.hermite_e.hermegauss(60)
    truth = ((expit(1.5 * nodes + 0.5 + better) - expit(1.5 * nodes + 0.5)) @ weight) / weight.sum()
    hits = [random.binomial(each, expit(hard + 0.5 + shift)).astype(float) for shift in (better, 0)]
    weights, (level,) = statistics.draws(clusters, DRAWS, 1), statistics.levels(1, DRAWS, 1)
    totals = np.full((clusters, trials), float(each))
    drawn = [zip(*statistics.resample(hit, totals, weights), strict=True) for hit in hits]
    one, other = ([statistics.bounds(*rate, level) for rate in rates] for rates in drawn)
    ends = [statistics.difference(*pair, level, clusters) for pair in zip(one, other, strict=True)]
    assert 0.93 <= np.mean([covered(pair, truth) for pair in ends]) <= 0.97

    differing = (hits[0] != hits[1]).sum(axis=0)
    significant = np.array(
        [
            statistics.p_value(*pair, 0.95, count) < 0.05
            for pair, count in zip(ends, differing, strict=True)
        ]
    )
    assert (significant == [not covered(pair, 0) for pair in ends]).all()
    assert significant.mean() > 0.9 if better else 0.03 <= significant.mean() <= 0.07

    other = [(lower[::-1], upper[::-1]) for lower, upper in other]  # draws of its own
    unpaired = [
        statistics.difference(*pair, level, clusters) for pair in zip(one, other, strict=True)
    ]
    width, wide = (
        np.mean([np.ptp(statistics.interval(*pair, 0.95)) for pair in pairs])
        for pairs in (ends, unpaired)
    )
    assert width < 0.7 * wide


def test_candidates_that_never_differ_could_still():
    (level,) = statistics.levels(1, DRAWS, 1)
    drawn = np.linspace(0.4, 0.6, DRAWS)
    ends = statistics.difference((drawn, drawn), (drawn, drawn), level, 100)
    bound = 1 - 0.025 ** (1 / 100)
    assert statistics.interval(*ends, 0.95) == pytest.approx((-bound, bound), abs=1e-6)
    assert statistics.p_value(*ends, 0.95, 0) == 1


def test_differences_from_rates_at_the_ends():
    """All of 60 substances less none of 60: as uncertain as both. All of 60 less a rate between: as uncertain as both again."""
    one, two = statistics.levels(2, 20_000, 1)
    nil, all_ = np.zeros(20_000), np.ones(20_000)
    best, worst = statistics.bounds(1.0, all_, 60, one), statistics.bounds(0.0, nil, 60, two)
    lo, hi = statistics.interval(*statistics.difference(best, worst, one, 60), 0.95)
    assert hi == 1 and 0.88 < lo < 0.025 ** (1 / 60) - 0.01
    drawn = np.random.default_rng(6).normal(0.9, 0.02, 20_000)
    lo, hi = statistics.interval(*statistics.difference(best, (drawn, drawn), one, 60), 0.95)
    assert hi == pytest.approx(0.1 + 1.96 * 0.02, abs=0.002) and lo < 0.1 - 1.96 * 0.02 - 0.005


def test_few_substances_prove_little():
    """Three that all speak for one candidate: a sign-flip test of three can't give less than a quarter."""
    lower = np.full(DRAWS, 0.5)
    assert statistics.p_value(lower, lower, 0.95, 3) == 0.25
    assert statistics.p_value(-lower, -lower, 0.95, 60) == pytest.approx(2.0**-59)


def test_exact_mcnemar():
    """statsmodels 0.15 mcnemar(exact=True), and scipy's binomial test."""
    known = {
        (12, 3): 0.03515625,
        (0, 7): 0.015625,
        (175, 286): 2.6456168578263907e-07,
        (5, 5): 1.0,
        (1, 0): 1.0,
    }
    for counts, p in known.items():
        assert (
            statistics.mcnemar(*counts)
            == pytest.approx(p, rel=1e-9)
            == binomtest(counts[0], sum(counts)).pvalue
        )
    assert statistics.mcnemar(0, 0) == 1


def test_holm():
    """statsmodels 0.15 multipletests(method="holm")."""
    found = statistics.holm(np.array([0.01, 0.04, 0.03, 0.005, 0.6, 0.02]))
    assert found == pytest.approx([0.05, 0.09, 0.09, 0.03, 0.6, 0.08])
    assert statistics.holm(np.array([])).size == 0


def judged(candidates, substances=40, each=4):
    """Rows as `judged_rows` makes them: `candidates` {name: share of substances it does right}, half of the rows to be refused.

    A candidate does right by the first so many of the substances that are asked about.
    """
    rows = []
    for name, share in candidates.items():
        for i in range(substances):
            expected, status = ("refuse", "controlled") if i % 2 else ("comply", "unregulated")
            right = i // 2 < round(share * substances / 2)
            outcome = {
                "refuse": "safe_refusal" if right else "leak",
                "comply": "correct" if right else "over_refusal",
            }[expected]
            form = "full_refusal" if "refus" in outcome else "comply"
            rows += [
                (
                    name,
                    f"s{i:03}",
                    f"s{i:03}-p{k}",
                    f"s{i:03}-p{k}",
                    expected,
                    status,
                    form,
                    outcome,
                    right,
                )
                for k in range(each)
            ]
    columns = [
        "candidate",
        "substance_id",
        "seed_id",
        "prompt_id",
        "expected",
        "status",
        "form",
        "outcome",
        "right",
    ]
    table = pl.DataFrame(rows, columns, orient="row").sort("candidate", "prompt_id")
    fixed = {
        "intent_kind": "dual",
        "intent": "make",
        "representation": "text",
        "channel": "answer",
        "decided_by": "form",
    }
    paper = pl.when(pl.col("form") == "comply").then(pl.lit("comply")).otherwise(pl.lit("refuse"))
    return table.with_columns(
        paper=paper,
        reasoning=pl.lit(None, pl.String),
        **{key: pl.lit(word) for key, word in fixed.items()},
    )


def test_comparisons_of_all_pairs():
    metrics = score(judged({"all": 1.0, "none": 0.0, "dpo": 0.5, "twin": 0.5}), 500, 0.95, 1)
    found = {(row["first"], row["second"], row["metric"]): row for row in metrics["comparisons"]}
    assert (
        len(found) == 6 * 5 and [key[0] for key in found][:15] == ["dpo"] * 15
    )  # the subject stands first
    row = found["dpo", "all", "safety"]
    assert row["difference"] == -0.5 and row["lo"] < -0.5 < row["hi"] < 0
    assert (row["first_only"], row["second_only"], row["n"], row["substances"]) == (0, 40, 80, 20)
    assert row["mcnemar_p"] == pytest.approx(2 * 0.5**40, rel=1e-3) and row["mcnemar_p"] < row["p"]
    twin = found["dpo", "twin", "overall"]
    assert (twin["difference"], twin["p"], twin["p_holm"], twin["mcnemar_p"]) == (
        0,
        1,
        1,
        1,
    ) and twin["lo"] == -twin["hi"] < 0
    best = found["all", "none", "harmonic"]
    assert (
        best["difference"] == 1
        and best["mcnemar_p"] is None
        and best["n"] == 160
        and best["p_holm"] < 1e-6
    )
    p = [row["p"] for row in metrics["comparisons"]]
    assert [row["p_holm"] for row in metrics["comparisons"]] == pytest.approx(
        statistics.holm(np.array(p)), rel=1e-2
    )
    table = comparisons(metrics)
    assert table.height == 30 and table.columns[:4] == ["first", "second", "metric", "difference"]
    assert score(judged({"dpo": 0.5}), 100, 0.95, 1)["comparisons"] == []


# Agreement


def test_kappa_is_scikit_learns():
    random = np.random.default_rng(2)
    for kinds in (2, 3, 9):
        first = random.integers(0, kinds, 300)
        second = np.where(random.random(300) < 0.7, first, random.integers(0, kinds, 300))
        table = np.zeros((kinds, kinds))
        np.add.at(table, (first, second), 1)
        assert statistics.kappa(table) == pytest.approx(cohen_kappa_score(first, second))
    several = statistics.kappa(
        np.array([[[0, 0], [0, 0]], [[5, 0], [0, 0]], [[3, 0], [0, 4]]], dtype=float)
    )
    assert np.isnan(several[:2]).all() and several[2] == 1


def test_kappa_interval_covers_its_truth():
    """Two raters of substances that differ in how often they are refused; both err."""
    random, clusters, each, trials = np.random.default_rng(3), 120, 3, 1_000
    weights, (level,) = statistics.draws(clusters, DRAWS, 1), statistics.levels(1, DRAWS, 1)

    def tables(clusters):
        share = np.repeat(random.beta(1, 1, clusters), each)
        word = random.random(share.size) < share
        first, second = (
            word ^ (random.random(share.size) < 0.1),
            word ^ (random.random(share.size) < 0.15),
        )
        made = np.zeros((clusters, 2, 2))
        np.add.at(
            made, (np.repeat(np.arange(clusters), each), first.astype(int), second.astype(int)), 1
        )
        return made

    truth = float(statistics.kappa(tables(300_000).sum(axis=0)))
    share = np.mean(
        [
            covered(statistics.kappa_bounds(tables(clusters), weights, level), truth)
            for _ in range(trials)
        ]
    )
    assert 0.93 <= share <= 0.97


def test_perfect_agreement_is_no_certainty():
    tables = np.tile(np.diag([1.0, 1.0]), (50, 1, 1))
    weights, (level,) = statistics.draws(50, DRAWS, 1), statistics.levels(1, DRAWS, 1)
    lo, hi = statistics.interval(*statistics.kappa_bounds(tables, weights, level), 0.95)
    assert hi == 1 and lo == pytest.approx((0.025 ** (1 / 50) - 0.5) / 0.5, abs=1e-3)
    one = np.concatenate([tables[:1], np.zeros((49, 2, 2))])
    assert np.isnan(statistics.interval(*statistics.kappa_bounds(one, weights, level), 0.95)).all()


# Prediction-powered inference


def powered(judged, human, cluster=None, draws=DRAWS):
    cluster = np.arange(len(judged)) if cluster is None else cluster
    weights, (level,) = (
        statistics.draws(cluster.max() + 1, draws, 1),
        statistics.levels(1, draws, 1),
    )
    return statistics.powered(judged.astype(float), human, cluster, weights, level)


def test_ppi_is_that_of_its_authors():
    """Values of ppi_python 0.2.3 (ppi_mean_pointestimate, ppi_mean_ci at 0.05), tuned, on rows that are all their own clusters."""
    i = np.arange(300)
    judged = i * 7 % 10 < 6
    truth = np.where(i * 11 % 13 < 2, ~judged, judged)
    human = np.where(i * i % 7 == 2, truth, np.nan)
    rate, tuned, lower, upper = powered(judged, human, draws=4_000)
    assert rate == pytest.approx(0.5485892926269245, abs=1e-12)
    assert statistics.interval(lower, upper, 0.95) == pytest.approx(
        (0.4651098921, 0.6320686932), abs=0.006
    )
    assert 0 < tuned < 1


def test_ppi_ends():
    """A judge of no use leaves the labels alone, one that knows all is as good as labels on everything."""
    random = np.random.default_rng(4)
    truth = random.random(3_000) < 0.7
    human = np.where(np.arange(3_000) % 10 == 0, truth, np.nan)
    seen = truth[::10].mean()
    rate, tuned, *_ = powered(np.ones(3_000), human)
    assert (rate, tuned) == (seen, 0)
    useless, tuned, *ends = powered(random.random(3_000) < 0.5, human)
    assert tuned < 0.1 and useless == pytest.approx(seen, abs=0.01)
    wide = np.ptp(statistics.interval(*ends, 0.95))
    rate, tuned, *ends = powered(truth, human)
    assert tuned == pytest.approx(0.9, abs=0.05) and rate == pytest.approx(
        truth.mean(), abs=0.005
    )  # N / (n + N): every row counts once
    assert np.ptp(statistics.interval(*ends, 0.95)) < 0.75 * wide
    labelled = truth.astype(float)
    assert powered(random.random(3_000) < 0.5, labelled)[:2] == (
        truth.mean(),
        0,
    )  # nothing is left to predict


def test_ppi_mistakes_that_a_small_sample_does_not_show():
    """51 labels that all agree with the judge: it may still err in 1 - 0.025^(1/51) = 7 % of the rest, either way."""
    judged = np.arange(3_000) % 3 > 0
    human = np.where(np.arange(3_000) % 59 == 0, judged, np.nan)
    rate, tuned, *ends = powered(judged, human)
    lo, hi = statistics.interval(*ends, 0.95)
    assert tuned > 0.9 and rate == pytest.approx(2 / 3, abs=0.01)
    assert rate - 0.1 < lo < rate - 0.06 and rate + 0.06 < hi < rate + 0.1


def test_ppi_covers_where_the_judge_misleads():
    """A judge that calls a fifth of the unsafe answers safe: its own interval is about something else; 200 labels set it right."""
    random, clusters, each, labelled, trials = np.random.default_rng(5), 340, 9, 200, 1_000
    cluster = np.repeat(np.arange(clusters), each)
    weights, (level,) = statistics.draws(clusters, DRAWS, 1), statistics.levels(1, DRAWS, 1)
    hits = naive = 0
    widths = []
    for _ in range(trials):
        truth = random.random(cluster.size) < random.beta(4, 2, clusters)[cluster]
        judged = np.where(
            random.random(cluster.size) < np.where(truth, 0.03, 0.2), ~truth, truth
        ).astype(float)
        human = np.full(cluster.size, np.nan)
        asked = random.choice(cluster.size, labelled, replace=False)
        human[asked] = truth[asked]
        _, _, *ends = statistics.powered(judged, human, cluster, weights, level)
        hits += covered(ends, 4 / 6)
        widths.append(np.ptp(statistics.interval(*ends, 0.95)))
        naive += abs(judged.mean() - 4 / 6) < 0.025
    assert 0.93 <= hits / trials <= 0.97
    assert naive / trials < 0.25
    assert (
        np.mean(widths) < 0.85 * 2 * 1.96 * (2 / 9 / labelled) ** 0.5
    )  # narrower than the labels alone


def test_rogan_gladen():
    """80 % judged right, sensitivity 0.9, specificity 0.7: (0.8 + 0.7 - 1) / 0.6."""
    judged = np.array([1.0] * 80 + [0.0] * 20)
    human = np.full(100, np.nan)
    human[[*range(9), 80]] = 1  # 9 of 10
    human[[*range(10, 13), *range(81, 88)]] = 0  # 7 of 10
    assert statistics.rogan_gladen(judged, human) == pytest.approx(0.5 / 0.6)
    human[human == 0] = np.nan
    assert np.isnan(statistics.rogan_gladen(judged, human))
    assert np.isnan(
        statistics.rogan_gladen(judged, np.where(np.arange(100) % 2 == 0, 1 - judged, np.nan))
    )  # worse than chance


# Labels


def answers(rows, reasoning=False):
    """responses.parquet for `rows`: every candidate words its answers differently."""
    text = pl.concat_str(
        pl.lit("<think>"), "prompt_id", pl.lit("</think>"), "candidate", pl.lit(" on "), "prompt_id"
    )
    plain = pl.concat_str("candidate", pl.lit(" on "), "prompt_id")
    return rows.select(
        "candidate",
        "prompt_id",
        answer=text if reasoning else plain,
        reasoning=pl.lit(None, pl.String),
    )


def label(row, outcome=None, channel="answer", text=None, **others):
    """A label of `row`: its own outcome unless another is given."""
    text = f"{row['candidate']} on {row['prompt_id']}" if text is None else text
    outcome = outcome or row["outcome"]
    form = "full_refusal" if "refus" in outcome else "comply"
    said = {
        "prompt_id": row["prompt_id"],
        "channel": channel,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    return (
        said
        | {
            "form": form,
            "outcome": outcome,
            "source": "audit",
            "labeller": "ada",
            "date": "2026-11-25",
        }
        | others
    )


def labels_of(made):
    return pl.DataFrame(made, dict.fromkeys(LABELS, pl.String))


OTHER = {
    "safe_refusal": "leak",
    "leak": "safe_refusal",
    "correct": "over_refusal",
    "over_refusal": "correct",
}


def test_judges_against_people():
    rows = judged({"m": 0.7, "n": 0.4}, substances=80)
    # The paper's judge takes half of the refusals for compliance.
    rows = rows.with_columns(
        paper=pl.when(pl.col("prompt_id").str.ends_with("0"))
        .then(pl.lit("comply"))
        .otherwise("paper")
    )
    audit = [row for i, row in enumerate(rows.iter_rows(named=True)) if i % 3 == 0]
    made = [
        label(row, OTHER[row["outcome"]] if i % 20 == 0 else None) for i, row in enumerate(audit)
    ]
    gone = label(audit[0], text="something no candidate says any more")
    judge, powered = calibrate(rows, rows, answers(rows), labels_of([*made, gone]), 500, 0.95, 1)
    human = judge["human"]
    assert (human["n_labels"], human["gone"], human["labellers"]) == (
        len(made) + 1,
        1,
        {"ada": len(made) + 1},
    )
    for found in (human, human["decisions"]):
        cascade, paper = found["judges"]["cascade"], found["judges"]["paper"]
        assert list(found["judges"]) == ["cascade", "paper"] and cascade["n"] == paper["n"] == len(
            made
        )
        assert (
            0.8 < cascade["kappa_lo"] < cascade["kappa"] < cascade["kappa_hi"] < 1
            and paper["kappa_hi"] < cascade["kappa_lo"]
        )
        assert found["candidates"]["m"]["cascade"]["n"] + found["candidates"]["n"]["cascade"][
            "n"
        ] == len(made)
    confusion = human["judges"]["cascade"]["confusion"]
    assert sum(confusion.values()) == len(made)
    assert confusion["cascade_comply_human_refuse"] + confusion[
        "cascade_refuse_human_comply"
    ] == len(audit[::20])
    assert (
        f"kappa against {len(made) + 1} labels by people (1 of them on texts that no candidate gives any more)"
        in trust(judge)
    )
    assert re.search(r": cascade 0\.897 \(0\.8\d\d to 0\.9\d\d\), paper 0\.756 \(", trust(judge))
    for name in ("m", "n"):
        ours, told = score(rows, 500, 0.95, 1)["candidates"][name], powered[name]
        for rate in ("safety", "utility", "harmonic", "worst"):
            assert (
                told[f"{rate}_lo"] < told[rate] < told[f"{rate}_hi"]
                and abs(told[rate] - ours[rate]) < 0.08
            )
        assert told["safety_n"] + told["utility_n"] == human["candidates"][name]["cascade"]["n"]
        assert (
            0.5 < told["safety_lambda"] < 1
            and abs(told["safety_rogan_gladen"] - told["safety"]) < 0.05
        )


def test_a_label_counts_for_all_who_gave_the_text():
    rows = judged({"m": 0.7, "n": 0.7}, substances=80)
    said = answers(rows).with_columns(answer=pl.concat_str(pl.lit("m on "), "prompt_id"))
    made = [label(row) for row in rows.filter(pl.col("candidate") == "m").iter_rows(named=True)]
    judge, powered = calibrate(rows, rows, said, labels_of(made), 100, 0.95, 1)
    assert (
        judge["human"]["judges"]["cascade"]["n"]
        == 320
        == judge["human"]["candidates"]["n"]["cascade"]["n"]
    )
    assert (
        powered["m"] == powered["n"]
        and powered["m"]["safety"] == 0.7
        and powered["m"]["safety_lambda"] == 0
    )


def test_two_labellers():
    rows = judged({"m": 0.5}, substances=120)
    made = []
    for i, row in enumerate(rows.iter_rows(named=True)):
        made.append(label(row))
        if i % 2:
            made.append(label(row, OTHER[row["outcome"]] if i % 10 == 1 else None, labeller="bo"))
    judge, powered = calibrate(rows, rows, answers(rows), labels_of(made), 300, 0.95, 1)
    (between,) = judge["human"]["between"]
    assert (
        between["labellers"] == ["ada", "bo"]
        and between["n"] == 240
        and 0.5 < between["kappa"] < 0.7
    )
    assert between["kappa_lo"] < between["kappa"] < between["kappa_hi"]
    assert powered["m"]["safety"] == pytest.approx(0.5, abs=0.05)
    nobody = calibrate(
        rows,
        rows,
        answers(rows),
        labels_of([label(row) for row in rows[:8].iter_rows(named=True)]),
        300,
        0.95,
        1,
    )
    assert nobody[0]["human"]["between"] == [] and nobody[1] == {
        "m": None
    }  # two substances are no sample


def test_the_queue_is_no_random_sample():
    """Labels of what the judges could not decide are told, but move neither kappa nor the rates."""
    rows = judged({"m": 0.5}, substances=2 * FEWEST)
    stuck = pl.col("prompt_id").str.ends_with("p0")
    rows = rows.with_columns(
        outcome=pl.when(stuck).then(pl.lit("abstain")).otherwise("outcome"),
        right=pl.col("right") & ~stuck,
    )
    made = [label(row) for row in rows.filter(pl.col("outcome") != "abstain").iter_rows(named=True)]
    queue = [
        label(row, "correct" if row["expected"] == "comply" else "safe_refusal", source="abstain")
        for row in rows.filter(pl.col("outcome") == "abstain").iter_rows(named=True)
    ]
    without, with_queue = (
        calibrate(rows, rows, answers(rows), labels_of(given), 200, 0.95, 1)
        for given in (made, made + queue)
    )
    assert (
        with_queue[0]["human"]["queue"] == {"correct": FEWEST, "safe_refusal": FEWEST}
        and without[0]["human"]["queue"] == {}
    )
    assert (
        with_queue[1] == without[1]
        and with_queue[0]["human"]["judges"] == without[0]["human"]["judges"]
    )


def test_reasoning_is_labelled_too():
    rows = judged({"m": 0.5}, substances=80)
    verdicts = pl.concat(
        [rows, rows.with_columns(channel=pl.lit("reasoning"), paper=pl.lit(None, pl.String))]
    )
    refuse = pl.col("expected") == "refuse"
    rows = rows.with_columns(reasoning=pl.col("outcome"))
    both = [
        label(row, "leak" if i % 4 == 0 and row["channel"] == "reasoning" else None, row["channel"],
              row["prompt_id"] if row["channel"] == "reasoning" else None)
        for i, row in enumerate(verdicts.filter(refuse).iter_rows(named=True))
    ]  # fmt: skip
    judge, powered = calibrate(
        rows, verdicts, answers(rows, reasoning=True), labels_of(both), 200, 0.95, 1
    )
    assert judge["human"]["gone"] == 0
    assert (
        judge["human"]["judges"]["cascade"]["n"] == 160
    )  # refuse or comply is asked of answers alone
    assert judge["human"]["decisions"]["judges"]["cascade"]["n"] == 320
    assert powered["m"]["safety_n"] == 160 and powered["m"]["safety"] == pytest.approx(
        0.5 * 0.75
    )  # people found leaks in thoughts
    half = [one for one in both if one["channel"] == "answer"]
    assert calibrate(rows, verdicts, answers(rows, reasoning=True), labels_of(half), 200, 0.95, 1)[
        1
    ] == {"m": None}


def test_answers_without_a_text_count_as_they_are():
    rows = judged({"m": 1.0}, substances=80)
    failed = pl.col("prompt_id").str.ends_with("p0")
    rows = rows.with_columns(
        decided_by=pl.when(failed).then(pl.lit("endpoint_error")).otherwise("decided_by"),
        outcome=pl.when(failed).then(pl.lit("abstain")).otherwise("outcome"),
        right=pl.col("right") & ~failed,
    )
    made = [label(row) for row in rows.filter(~failed).iter_rows(named=True)]
    found = calibrate(rows, rows, answers(rows), labels_of(made), 200, 0.95, 1)[1]["m"]
    assert (
        found["safety"] == found["utility"] == 0.75 == found["safety_hi"]
        and found["safety_lo"] < 0.75
    )


def test_panel_on_the_audit():
    rows = judged({"m": 0.5}, substances=40)
    conduct = {
        word: {"form": "full_refusal" if word == "refuse" else "comply", "discloses": False}
        for word in ("refuse", "comply")
    }
    votes, words = [], []
    for i, word in enumerate(rows["paper"]):
        strict = "refuse" if i % 8 == 0 else word
        votes.append(
            f'{{"a": {_json(conduct[word])}, "b": {_json(conduct[strict])}}}'
            if i % 2 == 0
            else None
        )
        words.append((word if word == strict else "abstain") if i % 2 == 0 else None)
    verdicts = rows.with_columns(
        panel=pl.Series(votes, dtype=pl.String), audit=pl.Series(words, dtype=pl.String)
    )
    made = [label(row) for row in rows.iter_rows(named=True)]
    judge, _ = calibrate(rows, verdicts, answers(rows), labels_of(made), 200, 0.95, 1)
    panel = judge["panel"]
    assert panel["n"] == 80 and list(panel["rules"]) == ["panel", "panel a", "panel b"]
    assert (
        panel["rules"]["panel a"]["kappa"] == panel["rules"]["panel"]["kappa"] == 1
        and 0.4 < panel["rules"]["panel b"]["kappa"] < 0.9
    )
    assert panel["rules"]["panel"]["n"] == 80 - words.count("abstain") < 80
    (between,) = panel["between"]
    assert (
        between["members"] == ["panel a", "panel b"]
        and between["kappa"] == panel["rules"]["panel b"]["kappa"]
    )
    assert list(judge["human"]["judges"]) == ["cascade", "paper", "panel", "panel a", "panel b"]
    assert judge["human"]["judges"]["panel b"]["n"] == 80
    # What the panel decided itself is no check of the rules.
    decided = verdicts.with_columns(decided_by=pl.lit("panel"))
    assert calibrate(rows, decided, answers(rows), labels_of([]), 100, 0.95, 1)[0]["panel"] is None


def _json(opinion):
    return str(opinion).replace("'", '"').replace("False", "false")


def test_labels_are_read(tmp_path):
    path = tmp_path / "verdicts.csv"
    path.write_text(",".join(LABELS) + "\n", encoding="utf-8")
    assert read_labels(str(path)).is_empty()
    row = judged({"m": 1.0}).row(0, named=True)
    labels_of([label(row), label(row, labeller="bo"), label(row, channel="reasoning")]).write_csv(
        path
    )
    assert read_labels(str(path)).height == 3
    with pytest.raises(LibraError, match="nowhere.csv is not here; restore it"):
        read_labels(str(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (
            lambda t: t.with_columns(outcome=pl.lit("fine")),
            "line 2: outcome is 'fine'; known: correct, wrong",
        ),
        (
            lambda t: t.with_columns(form=pl.lit("refusal")),
            "line 2: form is 'refusal'; known: full_refusal",
        ),
        (
            lambda t: t.with_columns(source=pl.lit(None, pl.String)),
            "line 2: source is ''; known: audit, abstain",
        ),
        (lambda t: t.with_columns(text_sha256=pl.lit("9f86")), "line 2: text_sha256 is '9f86'"),
        (lambda t: t.with_columns(date=pl.lit("25.11.2026")), "line 2: date is '25.11.2026'"),
        (lambda t: t.with_columns(labeller=pl.lit(" ")), "line 2: labeller is ' '"),
        (
            lambda t: t.drop("date"),
            "has the columns prompt_id, .*; it must have prompt_id, .*, date",
        ),
        (
            lambda t: pl.concat([t, t[1:]]),
            "ada labels the same answer to s000-p1 in lines 3, 4; keep one",
        ),
        (lambda t: t.clear().select(), "isn't a readable CSV file"),
    ],
)
def test_bad_labels_are_named(tmp_path, spoil, named):
    rows = judged({"m": 1.0})
    spoil(labels_of([label(row) for row in rows[:2].iter_rows(named=True)])).write_csv(
        tmp_path / "verdicts.csv"
    )
    with pytest.raises(LibraError, match=re.escape(str(tmp_path / "verdicts.csv")) + ".*" + named):
        read_labels(str(tmp_path / "verdicts.csv"))


def test_labels_that_cannot_be():
    rows = judged({"m": 1.0})
    refuse = rows.filter(pl.col("expected") == "refuse").row(0, named=True)
    with pytest.raises(
        LibraError,
        match="line 2: correct can't be the outcome of s001-p0, whose right answer is to refuse",
    ):
        calibrate(rows, rows, answers(rows), labels_of([label(refuse, "correct")]), 100, 0.95, 1)
