"""Greedy answers of `respond` against one prompt after the other, on the CPU, in one run.

    python tests/benchmarks/answers.py      # five minutes

Needs models/dpo and the released test split; writes TRAINING.md. All test prompts go through
stages.local.generate, as `respond` calls it, and every tenth of them through `model.generate`, one
at a time. Measured are prompts per second of both, in turn, as medians of three; the texts that
both wrote must be the same.
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

    max_new_tokens = params["respond"]["max_new_tokens"]
    batch_size = params["respond"]["batch_size"]
    prompts = pl.read_parquet("data/librachemqa/test.parquet")["prompt"].unique().sort().to_list()
    model, tokenizer = load_policy("models/dpo")

    def one_by_one() -> list[str]:
        texts = []
        for ids in encode_prompts(tokenizer, prompts[::EVERY]):
            with torch.inference_mode():
                output = model.generate(
                    torch.tensor([ids]), max_new_tokens=max_new_tokens, do_sample=False
                )
            texts.append(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip())
        return texts

    rates: dict[str, list[float]] = {"together": [], "alone": []}
    for _ in range(REPEATS):
        start = time.perf_counter()
        answers = greedy(model, tokenizer, prompts, max_new_tokens, batch_size, "together")
        batched = [text for text, _ in answers]
        between = time.perf_counter()
        texts = one_by_one()
        rates["together"].append(len(batched) / (between - start))
        rates["alone"].append(len(texts) / (time.perf_counter() - between))
        if texts != batched[::EVERY]:
            raise SystemExit("the texts differ")
        print({name: f"{values[-1]:.1f}/s" for name, values in rates.items()}, flush=True)
    together, alone = (statistics.median(values) for values in rates.values())
    line = (
        f"{together / alone:.1f} x: {together:.0f} against {alone:.0f} prompts a second "
        f"({len(prompts):,} and {len(texts):,} prompts, medians of {REPEATS}, {date.today()})."
    )
    text = RESULTS.read_text(encoding="utf-8")
    opening, closing = "<!-- answers.py -->\n", "\n<!-- end of answers.py -->"
    head, rest = text.split(opening)
    tail = rest.split(closing, 1)[1]
    RESULTS.write_text(head + opening + line + closing + tail, encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
