"""TRL's fused language-model head for the CPU: only the tokens that are scored are projected."""

import types

import torch


def score_labelled_only(model, outputs: tuple[str, ...] = ()) -> None:
    """Make `model(..., labels=..., fused_lm_head=True)` on the CPU project only positions whose next token is labelled.

    For a model that a TRL trainer has given its fused head (trl.trainer.utils.add_fused_lm_head). Off the GPU that head
    projects every position, of prompts and padding too, which is most of a small model's step. Fields and values are TRL's
    (rows x (tokens - 1), or rows x tokens with `shift_labels`; zero where nothing is labelled): `log_probs`, and of `entropy`,
    `mean_logits` and `is_top1` those in `outputs`. On a GPU TRL's own head is used, and so it is for a model that caps or scales
    its logits (Gemma 2, Cohere, Granite).
    """
    config = model.config.get_text_config()
    scaling = (
        "final_logit_softcapping",
        "logit_scale",
        "logits_scaling",
        "lm_head_multiplier",
        "output_multiplier",
    )
    if any(getattr(config, name, None) is not None for name in scaling):
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
            for name, value in (
                ("labels", labels),
                ("shift_labels", shift_labels),
                ("num_items_in_batch", num_items_in_batch),
            ):
                if value is not None:
                    kwargs[name] = value
            return fused(*args, fused_lm_head=fused_lm_head, **kwargs)
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        if shift_labels is None:
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        mask = shift_labels != -100
        targets = shift_labels[mask]
        logits = self.get_output_embeddings()(hidden[mask]).float()
        every = torch.log_softmax(logits, dim=-1)
        scored = every.gather(-1, targets[:, None])[:, 0]
        found = {"log_probs": scored}
        with torch.no_grad():
            if "entropy" in outputs:
                found["entropy"] = -(every.exp() * every).sum(-1)
            if "mean_logits" in outputs:
                found["mean_logits"] = logits.mean(-1)
            if "is_top1" in outputs:
                found["is_top1"] = logits.argmax(-1) == targets
        fields = {
            name: values.new_zeros(mask.shape).masked_scatter(mask, values)
            for name, values in found.items()
        }
        count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(loss=-scored.sum() / count, label_mask=mask, **fields)

    model.forward = types.MethodType(forward, model)
