"""Reading chemistry before the first request: names and structures of other compounds, each with its substructures as the target.

A policy this small that starts from nothing learns substances by heart. One that first learns which substructures a name or a SMILES
stands for reads new substances by their parts. A linear head on the token where an answer would start says which circular
substructures (Morgan, radius 2: Rogers and Hahn 2010) the compound has; it is dropped afterwards. No compound has a label.
"""

import random

import numpy as np
import polars as pl
import torch
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainingArguments

from stages.common.progress import progress
from stages.training.encode import BpeDropout, encode_prompts, length_grouped
from stages.training.trainer import Report, arguments

SUBSTRUCTURES = 512  # the most frequent ones
IN_REQUEST = 0.5  # share of compounds shown inside a request of the train split; the others stand alone


def substructures(smiles: list[str], most: int = SUBSTRUCTURES) -> torch.Tensor:
    """Compounds x at most `most` substructures, 1.0 where a compound has one: the most frequent, in none of them always or never."""
    from rdkit import Chem
    from rdkit.Chem import rdFingerprintGenerator

    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    bits = np.stack([morgan.GetFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in smiles]).astype(np.float32)
    order = np.argsort(-bits.sum(0), kind="stable")[:most]
    share = bits[:, order].mean(0)
    return torch.from_numpy(bits[:, order[(share > 0.0) & (share < 1.0)]])


def requests(train: pl.DataFrame, substances: pl.DataFrame) -> dict[str, list[tuple[str, str]]]:
    """By representation, what stands before and after the substance in each prompt of `train` that shows it once."""
    shown = {"text": dict(substances.select("substance_id", "name").rows()), "smiles": dict(substances.select("substance_id", "smiles").rows())}
    prompts = train.unique("prompt_id").sort("prompt_id").select("representation", "substance_id", "prompt")
    found: dict[str, list[tuple[str, str]]] = {"text": [], "smiles": []}
    for representation, substance, prompt in prompts.iter_rows():
        parts = prompt.split(shown[representation][substance])
        if len(parts) == 2:
            found[representation].append((parts[0], parts[1]))
    return found


class _Readings(torch.utils.data.Dataset):
    """Rows of (token ids, number of the compound): every compound once an epoch, by name and by structure in turn, segmented anew."""

    def __init__(self, compounds, around, tokenizer, epochs: int, batch_size: int, bpe_dropout: float, longest: int, random_seed: int):
        dropout = BpeDropout(tokenizer, bpe_dropout) if bpe_dropout else None
        self.rows: list[tuple[list[int], int]] = []
        for epoch in progress(range(epochs), "sft: segmenting compounds"):
            rng = random.Random(f"structure:{random_seed}:{epoch}")
            texts = [_shown(pair, ("text", "smiles")[(i + epoch) % 2], around, rng) for i, pair in enumerate(compounds)]
            if dropout:
                rows = [dropout.prompt(text, rng, longest) for text in texts]
            else:
                rows = encode_prompts(tokenizer, texts)
            rows = [ids if len(ids) <= longest else ids[: longest - 1] + ids[-1:] for ids in rows]
            self.rows += [(rows[i], i) for i in length_grouped([len(ids) for ids in rows], batch_size, rng)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, n: int) -> tuple[list[int], int]:
        return self.rows[n]


def _shown(compound: tuple[str, str], representation: str, around, rng: random.Random) -> str:
    text = compound[representation == "smiles"]
    if not around[representation] or rng.random() >= IN_REQUEST:
        return text
    before, after = rng.choice(around[representation])
    return before + text + after


class _Reader(torch.nn.Module):
    """The policy's decoder with a linear head on each row's last token. Loss: nats a compound."""

    def __init__(self, model, targets: torch.Tensor):
        super().__init__()
        self.decoder = model.base_model
        self.targets = targets
        share = targets.mean(0)
        self.head = torch.nn.Linear(model.config.hidden_size, targets.shape[1])
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.logit(share))  # knows how frequent each is

    def forward(self, input_ids, last, compound):
        hidden = self.decoder(input_ids=input_ids).last_hidden_state[torch.arange(len(last)), last]
        loss = functional.binary_cross_entropy_with_logits(self.head(hidden), self.targets[compound], reduction="sum")
        return {"loss": loss / len(last)}


def learn_to_read(model, tokenizer, compounds: list[tuple[str, str]], around, params, bpe_dropout: float, random_seed: int) -> float:
    """Train `model` in place on (name, SMILES) pairs; returns the loss of the last steps as a share of what frequencies alone give.

    `around` is what `requests` gives; `params` has `epochs`, `batch_size` and `learning_rate`.
    """
    targets = substructures([smiles for _, smiles in compounds])
    longest = model.config.max_position_embeddings
    rows = _Readings(compounds, around, tokenizer, params.epochs, params.batch_size, bpe_dropout, longest, random_seed)

    def collate(batch):
        ids = torch.full((len(batch), max(len(ids) for ids, _ in batch)), tokenizer.pad_token_id)
        for row, (tokens, _) in enumerate(batch):
            ids[row, : len(tokens)] = torch.tensor(tokens)
        last = torch.tensor([len(tokens) - 1 for tokens, _ in batch])
        return {"input_ids": ids, "last": last, "compound": torch.tensor([compound for _, compound in batch])}

    settings = arguments(rows, params.batch_size, params.learning_rate, longest, random_seed, evaluations=1, folder=".cache/structure-trainer")
    for name in ("max_length", "activation_checkpointing", "eval_strategy", "eval_steps"):
        del settings[name]
    report = Report("sft, reading")
    reader = _Reader(model, targets)
    trainer = Trainer(
        model=reader,
        args=TrainingArguments(**settings | {"weight_decay": 0.1, "remove_unused_columns": False}),
        train_dataset=rows,
        data_collator=collate,
        callbacks=[report],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    alone = float(functional.binary_cross_entropy(targets.mean(0).expand_as(targets), targets)) * targets.shape[1]
    return report.rows[-1]["loss"] / alone
