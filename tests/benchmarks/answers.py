"""Greedy answers of `respond` against one prompt after the other, on the CPU, in one run.

    python tests/benchmarks/answers.py      # needs models/dpo and the released test split; five minutes; writes TRAINING.md

All test prompts through stages.local.generate, as `respond` calls it; every tenth of them through `model.generate`, one at a time.
Prompts a second of both, in turn, medians of three; the texts of those that both wrote must be the same.
"""

import os
import statistics
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "TRAINING.md"
EVERY, REPEATS = 10, 3


def main() -> None:
    import polars as pl
    import yaml

    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    from stages.training.determinism import deterministic
    from stages.training.policies import load_policy

    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    deterministic(params["random_seed"])
    import torch

    from stages.local.generate import greedy
    from stages.training.encode import encode_prompts

    most, batch_size = params["respond"]["max_new_tokens"], params["respond"]["batch_size"]
    prompts = pl.read_parquet("data/librachemqa/test.parquet")["prompt"].unique().sort().to_list()
    model, tokenizer = load_policy("models/dpo")

    def alone() -> list[str]:
        said = []
        for ids in encode_prompts(tokenizer, prompts[::EVERY]):
            with torch.inference_mode():
                whole = model.generate(torch.tensor([ids]), max_new_tokens=most, do_sample=False)
            said.append(tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True).strip())
        return said

    rates: dict[str, list[float]] = {"together": [], "alone": []}
    for _ in range(REPEATS):
        started = time.perf_counter()
        together = [
            text for text, _ in greedy(model, tokenizer, prompts, most, batch_size, "together")
        ]
        between = time.perf_counter()
        texts = alone()
        rates["together"].append(len(together) / (between - started))
        rates["alone"].append(len(texts) / (time.perf_counter() - between))
        if texts != together[::EVERY]:
            raise SystemExit("the texts differ")
        print({name: f"{values[-1]:.1f}/s" for name, values in rates.items()}, flush=True)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    line = f"{middle['together'] / middle['alone']:.1f} x: {middle['together']:.0f} against {middle['alone']:.0f} prompts a second"
    line += f" ({len(prompts):,} and {len(texts):,} prompts, medians of {REPEATS}, {date.today()})."
    text = RESULTS.read_text(encoding="utf-8")
    start, end = "<!-- answers.py -->\n", "\n<!-- end of answers.py -->"
    head, rest = text.split(start)
    RESULTS.write_text(head + start + line + end + rest.split(end, 1)[1], encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
