"""The client and its reply store, next to a bare loop and other libraries, at a fake endpoint.

    python tests/benchmarks/replies.py                      # all lines: 8 minutes
    python tests/benchmarks/replies.py --only speed edits   # some lines
    python tests/benchmarks/replies.py --peers              # other libraries too (*)
    python tests/benchmarks/replies.py --rows 300           # a trial: prints, writes nothing

(*) first: tests/benchmarks/peers/make_venvs.sh

Figures go to tests/benchmarks/RESULTS.md, a row per line and contender; a later run on such a
machine replaces the rows that it measures. This is no part of the tests: it needs an idle machine.
Every contender is a new process for each run, in an empty folder; the endpoint is another process
on the same cores. The lines (--only):

    speed    requests/s (first request to last row), time to the first request, peak memory, and
             the same run again
    edits    20 rows edited, 100 appended, 10 deleted, a run after each: requests sent
    matrix   nine edits, each of the same finished run: rows that answer another question than the
             one asked now
    kill     kill -9 ten times at random moments, then a run to the end
    cap      a server that takes 20 requests a second and refuses the rest
    latency  exponential latency: share of the rate if only latency took time
    memory   50 times the rows: peak of the process
"""

import argparse
import random
import shutil
import sqlite3
import statistics
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import date
from operator import truediv

from contenders import (
    BARE,
    CONCURRENCY,
    CURATOR,
    DISTILABEL,
    OURS,
    PEERS,
    PLAIN,
    Contender,
    Failed,
    Question,
    Run,
    Server,
    empty_folder,
    run,
    start,
)
from fake_endpoint import ideal_seconds
from results import Row, busy_cores, rows_of, write_results

ROWS, MATRIX_ROWS = 2000, 200
REPEATS, LATENCY_REPEATS = 5, 3  # medians are shown
KILLS = 10
CAP = 20  # requests a second
LEAST_RATE = {BARE: 0.85, CURATOR: 1.0, DISTILABEL: 4.0}  # of ours, as a multiple of theirs


def say(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)


def prompts(count: int) -> list[str]:
    return [f"prompt {i}" for i in range(count)]


def speed(contenders: list[Contender], count: int) -> list[Row]:
    firsts: dict[Contender, list[Run]] = {contender: [] for contender in contenders}
    repeats: dict[Contender, list[Run]] = {
        contender: [] for contender in contenders if contender is not BARE
    }
    with Server("--latency", "0.05") as server:
        for _ in range(REPEATS):
            for contender in contenders:  # in turn, so that other load hits all alike
                with empty_folder() as folder:
                    first = run(contender, server, folder, prompts(count))
                    firsts[contender].append(first)
                    say(
                        f"{contender.name}: {count / first.asking:.0f} requests/s, the first after "
                        f"{first.first:.2f} s, {first.stale} rows wrong"
                    )
                    if contender not in repeats:
                        continue
                    second = run(contender, server, folder, prompts(count))
                    repeats[contender].append(second)
                    say(
                        f"{contender.name} again: {second.served} sent, {second.working:.2f} s, "
                        f"{second.stale} rows wrong"
                    )

    return [
        *_rates(firsts, count, "first request to last row", "asking"),
        *_rates(firsts, count, "process start to last row", "total"),
        *_times_and_memory(firsts, repeats, count),
    ]


def _rates(runs: dict[Contender, list[Run]], count: int, span: str, field: str) -> list[Row]:
    """Requests per second over a span of time, with ours as multiples of the others'."""
    rates = {
        contender: [count / getattr(each, field) for each in of_contender]
        for contender, of_contender in runs.items()
    }
    figures = {
        contender: f"{statistics.median(rate):.0f} ({min(rate):.0f} to {max(rate):.0f})"
        for contender, rate in rates.items()
    }
    # Round by round: what slows the machine for a while slows both.
    ratios = {
        contender: statistics.median(map(truediv, rates[OURS], rate))
        for contender, rate in rates.items()
        if contender is not OURS
    }
    figures[OURS] += "".join(f"; {ratio:.2f} x {peer.name}" for peer, ratio in ratios.items())
    target = "; ".join(f"{least:g} x {peer.name}" for peer, least in LEAST_RATE.items())
    met = None
    if ratios.keys() >= LEAST_RATE.keys():
        met = all(ratios[peer] >= least for peer, least in LEAST_RATE.items())
    line = f"{count:,} requests, {CONCURRENCY} at once, 50 ms latency: requests/s, {span}"
    return rows_of(line, figures, target, met)


def _times_and_memory(
    firsts: dict[Contender, list[Run]], repeats: dict[Contender, list[Run]], count: int
) -> list[Row]:
    median = statistics.median
    first = {peer: median(each.first for each in runs) for peer, runs in firsts.items()}
    figures = {peer: f"{seconds:.2f} s" for peer, seconds in first.items()}
    line = "time to the first request, imports included"
    rows = rows_of(line, figures, "2.5 s", first[OURS] <= 2.5)

    working = {peer: median(each.working for each in runs) for peer, runs in repeats.items()}
    sent = {peer: max(each.served for each in runs) for peer, runs in repeats.items()}
    figures = {peer: f"{sent[peer]:,}, {seconds:.2f} s" for peer, seconds in working.items()}
    ordered = all(each.ordered for each in firsts[OURS] + repeats[OURS])
    met = sent[OURS] == 0 and working[OURS] <= 2 and ordered
    line = f"the same {count:,} again: requests sent, time without imports"
    rows += rows_of(line, figures, "0, 2 s", met)

    peak = {peer: median(each.peak for each in runs) for peer, runs in firsts.items()}
    figures = {peer: f"{mebibytes:.0f} MiB" for peer, mebibytes in peak.items()}
    return rows + rows_of(f"peak memory for {count:,} requests", figures)


def edits(contenders: list[Contender], count: int) -> list[Row]:
    base = prompts(count)
    step = count // 20
    edited = [
        f"{row}, edited" if i % step == 0 and i < 20 * step else row for i, row in enumerate(base)
    ]
    appended = edited + [f"appended {i}" for i in range(100)]
    deleted = [row for i, row in enumerate(appended) if not (i % 7 == 3 and i < 70)]
    figures, met = {}, None
    with Server("--latency", "0.05") as server:
        for contender in contenders:
            if contender is BARE:
                continue
            try:
                with empty_folder() as folder:
                    run(contender, server, folder, base)
                    runs = [
                        run(contender, server, folder, rows) for rows in (edited, appended, deleted)
                    ]
            except Failed as error:
                figures[contender] = str(error)
            else:
                sent, stale = [each.served for each in runs], [each.stale for each in runs]
                figures[contender] = (
                    f"{' / '.join(map(str, sent))}; stale rows {' / '.join(map(str, stale))}"
                )
                if contender is OURS:
                    ordered = all(each.ordered for each in runs)
                    met = sent == [20, 100, 0] and stale == [0, 0, 0] and ordered
            say(f"{contender.name}: {figures[contender]}")
    line = f"of {count:,} rows 20 edited / 100 appended / 10 deleted: requests sent"
    return rows_of(line, figures, "20 / 100 / 0", met)


def matrix(contenders: list[Contender], count: int) -> list[Row]:
    base = prompts(min(count, MATRIX_ROWS))
    changes: dict[str, tuple[list[str], Question, str]] = {
        "row": ([*base[:5], "another row", *base[6:]], PLAIN, "/v1"),
        "append": ([*base, "one more row"], PLAIN, "/v1"),
        "delete": ([*base[:5], *base[6:]], PLAIN, "/v1"),
        "template": (base, replace(PLAIN, template="edited"), "/v1"),
        "system prompt": (base, replace(PLAIN, system="Be brief."), "/v1"),
        "model": (base, replace(PLAIN, model="another"), "/v1"),
        "temperature": (base, replace(PLAIN, temperature=0.5), "/v1"),
        "base URL": (base, PLAIN, "/another/v1"),
        "parser": (base, replace(PLAIN, parser="edited"), "/v1"),
    }
    figures, met = {}, None
    with Server("--latency", "0.05") as server:
        for contender in contenders:
            if contender is BARE:
                continue
            stale, failed = {}, []
            with empty_folder() as folder:
                # Always at work in the same folder: some store absolute paths.
                finished, work = folder / "finished", folder / "work"
                work.mkdir()
                run(contender, server, work, base)
                work.rename(finished)
                for name, (rows, question, path) in changes.items():
                    shutil.copytree(finished, work)
                    try:
                        result = run(contender, server, work, rows, question, path)
                    except Failed as error:
                        failed.append(name)
                        say(f"{contender.name}, {name}: {error}")
                    else:
                        stale[name] = result.stale + (contender is OURS and not result.ordered)
                        say(
                            f"{contender.name}, {name}: {result.served} sent, "
                            f"{result.stale} rows stale"
                        )
                    shutil.rmtree(work)
            bad = [f"{name} {number}" for name, number in stale.items() if number]
            figure = f"{sum(stale.values()):,}" + (f" ({', '.join(bad)})" if bad else "")
            figure += f"; stopped with an error: {', '.join(failed)}" if failed else ""
            figures[contender] = figure
            if contender is OURS:
                met = not bad and not failed
    return rows_of(f"nine edits of a run of {len(base)}: stale rows in all", figures, "0", met)


def kill(contenders: list[Contender], count: int) -> list[Row]:
    dice, rows = random.Random(), prompts(count)
    with Server("--latency", "0.05") as server, empty_folder() as folder:
        for _ in range(KILLS):
            # A twentieth of the rows each, on average: the kills are spread over the first half.
            until = server.counts()["served"] + dice.uniform(1, count / KILLS)
            process = start(OURS, f"{server.address}/v1", folder, rows, PLAIN)
            while server.counts()["served"] < until and process.poll() is None:
                time.sleep(0.005)
            time.sleep(dice.uniform(0, 0.05))
            process.kill()
            process.wait()
            say(f"killed at {server.counts()['served']:,} requests")
            time.sleep(0.2)  # count what was still in a socket before the next run begins
        last = run(OURS, server, folder, rows, reset=False)
        with closing(sqlite3.connect(folder / ".cache" / "replies.sqlite")) as store:
            (stored,) = store.execute("select count(*) from replies").fetchone()

    limit = count + KILLS * CONCURRENCY
    wrong = max(last.stale, int(not last.ordered), abs(stored - count))
    figure = f"{last.served:,} sent, {wrong} rows lost or duplicated"
    say(figure)
    met = last.served <= limit and wrong == 0
    target = f"{limit:,} ({CONCURRENCY} in flight at each kill), 0"
    line = f"{count:,} requests, kill -9 {KILLS} times: requests sent in all"
    return rows_of(line, {OURS: figure}, target, met)


def cap(contenders: list[Contender], count: int) -> list[Row]:
    figures, met = {}, None
    with Server("--latency", "0.05", "--per-second", str(CAP)) as server:
        for contender in contenders:
            if contender is BARE:  # it can't cope with a refusal
                continue
            try:
                with empty_folder() as folder:
                    result = run(contender, server, folder, prompts(count))
            except Failed as error:
                figures[contender] = str(error)
            else:
                refused = f"{result.refused / result.served:.1%} of those served"
                figure = f"{refused}; {result.served / result.asking:.1f} served/s"
                figure += f", {result.stale} rows wrong" if result.stale else ""
                figures[contender] = figure
                if contender is OURS:
                    met = result.refused <= 0.1 * result.served and not result.stale
            say(f"{contender.name}: {figures[contender]}")
    line = f"{count:,} requests, server takes {CAP} a second: refused with 429"
    return rows_of(line, figures, "10 %", met)


def latency(contenders: list[Contender], count: int) -> list[Row]:
    ideal = ideal_seconds(count, CONCURRENCY, 0.5, exponential=True)
    shares: dict[Contender, list[float]] = {contender: [] for contender in contenders}
    with Server("--latency", "0.5", "--exponential") as server:
        for _ in range(LATENCY_REPEATS):
            for contender in contenders:
                with empty_folder() as folder:
                    share = ideal / run(contender, server, folder, prompts(count)).asking
                shares[contender].append(share)
                say(f"{contender.name}: {share:.2f} of the ideal {count / ideal:.0f}/s")
    medians = {contender: statistics.median(values) for contender, values in shares.items()}
    figures = {contender: f"{share:.2f}" for contender, share in medians.items()}
    line = (
        f"{count:,} requests, exponential latency of mean 0.5 s, {CONCURRENCY} at once: share of "
        "the ideal rate"
    )
    return rows_of(line, figures, "0.85", medians[OURS] >= 0.85)


def memory(contenders: list[Contender], count: int) -> list[Row]:
    with Server("--latency", "0.05") as server, empty_folder() as folder:
        result = run(OURS, server, folder, prompts(50 * count))
    rate = f"{result.served / result.asking:.0f} requests/s"
    say(f"{result.peak:.0f} MiB, {rate}, {result.stale} rows wrong")
    met = result.peak <= 300 and result.ordered
    figures = {OURS: f"{result.peak:.0f} MiB ({rate})"}
    return rows_of(f"peak memory for {50 * count:,} requests", figures, "300 MiB", met)


LINES = {
    "speed": speed,
    "edits": edits,
    "matrix": matrix,
    "kill": kill,
    "cap": cap,
    "latency": latency,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument(
        "--peers", action="store_true", help="other libraries too, if their environment is there"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=LINES,
        default=list(LINES),
        metavar="NAME",
        help=", ".join(LINES),
    )
    options = parser.parse_args()
    peers = [peer for peer in PEERS if options.peers and peer.python.exists()]
    for name in options.only:
        busy = busy_cores()
        print(f"{name} (other processes use {busy:.2f} cores):", file=sys.stderr, flush=True)
        rows = LINES[name]([OURS, BARE, *peers], options.rows)
        for row in rows:
            met = {None: "not measured", True: "met", False: "NOT MET"}[row.met]
            target = f"  [{row.target}: {met}]" if row.target else ""
            print(f"{row.line} | {row.contender.name}: {row.figure}{target}", flush=True)
        if options.rows == ROWS:
            write_results(rows, f"{date.today()}, {busy:.2f}")


if __name__ == "__main__":
    main()
