"""The fused head on the CPU against TRL's."""

import copy

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from helpers.grids import VOCABULARY, distance, flat, ids, new_model, new_tokenizer
from stages.training import trainer
from stages.training.head import score_labelled_only


@pytest.mark.parametrize("target", ["labels", "shift_labels", "labels with a count"])
def test_the_head_on_the_cpu_gives_trl_s_outputs(target):
    outputs = ("log_probs", "entropy", "mean_logits", "is_top1")
    ours, theirs = new_model(), new_model()
    for model in (ours, theirs):
        add_fused_lm_head(model, outputs=outputs)
    score_labelled_only(ours, outputs)
    tokens = torch.randint(6, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    hidden = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    labels = tokens.masked_fill(hidden, -100)
    labels[2] = -100
    kwargs = {target.split()[0]: labels}
    if "count" in target:
        kwargs["num_items_in_batch"] = 4
    mine, expected = (model(tokens, fused_lm_head=True, **kwargs) for model in (ours, theirs))
    for name in (*outputs, "loss", "label_mask"):
        assert torch.allclose(mine[name].float(), expected[name].float(), atol=1e-5), name
    with torch.no_grad():
        losses = [model(tokens, labels=labels).loss for model in (ours, theirs)]
    assert torch.equal(*losses), "without fused_lm_head: the model's own"


def test_sft_with_the_head_on_the_cpu_gives_trl_s_weights(tmp_path):
    prompts = [ids("p", i, 12) for i in range(12)]
    rows = Dataset.from_list(
        [{"input_ids": [*p, 7], "labels": [-100] * len(p) + [7]} for p in prompts]
    )
    arguments = trainer.arguments(rows, 4, 1e-3, 64, 1, 1, 4, str(tmp_path))
    weights = []
    model = new_model()
    for is_ours in (False, True):
        trl_trainer = SFTTrainer(
            model=copy.deepcopy(model),
            args=SFTConfig(**arguments | {"eval_strategy": "no"}),
            train_dataset=rows,
            processing_class=new_tokenizer(),
        )
        if is_ours:
            score_labelled_only(trl_trainer.model, ("entropy", "is_top1"))
        trl_trainer.train()
        weights.append(flat(trl_trainer.model.parameters()))
    theirs, ours = weights
    assert distance(ours, theirs) < 1e-6
