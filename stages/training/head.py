"""TRL's fused language-model head on the CPU: only tokens that are scored are projected."""

import types

import torch

# Settings by which a model caps or scales its logits (Gemma 2, Cohere, Granite).
LOGIT_SCALING = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


def score_labelled_only(model, outputs: tuple[str, ...] = ()) -> None:
    """Make `model(..., labels=..., fused_lm_head=True)` on the CPU project labelled positions only.

    `model` has TRL's fused head (trl.trainer.utils.add_fused_lm_head). Off the GPU that head
    projects every position, prompts and padding included, which is most of a small model's step.
    Fields and values are TRL's (rows x (tokens - 1), or rows x tokens with `shift_labels`; zero
    where nothing is labelled): `log_probs`, and those of `entropy`, `mean_logits` and `is_top1`
    that are in `outputs`.

    On a GPU, and for a model that caps or scales its logits, TRL's own head is used.
    """
    config = model.config.get_text_config()
    if any(getattr(config, name, None) is not None for name in LOGIT_SCALING):
        return
    from trl.trainer.utils import FusedCausalLMOutput

    fused = model.forward

    def forward(
        self,
        *args,
        fused_lm_head=False,
        labels=None,
        shift_labels=None,
        num_items_in_batch=None,
        **kwargs,
    ):
        if not fused_lm_head or self.device.type != "cpu":
            optional = {
                "labels": labels,
                "shift_labels": shift_labels,
                "num_items_in_batch": num_items_in_batch,
            }
            kwargs |= {name: value for name, value in optional.items() if value is not None}
            return fused(*args, fused_lm_head=fused_lm_head, **kwargs)

        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        if shift_labels is None:
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        mask = shift_labels != -100
        targets = shift_labels[mask]
        logits = self.get_output_embeddings()(hidden[mask]).float()
        log_softmax = torch.log_softmax(logits, dim=-1)
        log_probs = log_softmax.gather(-1, targets[:, None])[:, 0]

        per_token = {"log_probs": log_probs}
        with torch.no_grad():
            if "entropy" in outputs:
                per_token["entropy"] = -(log_softmax.exp() * log_softmax).sum(-1)
            if "mean_logits" in outputs:
                per_token["mean_logits"] = logits.mean(-1)
            if "is_top1" in outputs:
                per_token["is_top1"] = logits.argmax(-1) == targets
        fields = {
            name: values.new_zeros(mask.shape).masked_scatter(mask, values)
            for name, values in per_token.items()
        }
        count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(loss=-log_probs.sum() / count, label_mask=mask, **fields)

    model.forward = types.MethodType(forward, model)
