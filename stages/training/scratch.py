"""The default policy: a byte-level BPE tokenizer and a small Llama, both trained from scratch.

tokenizer = train_tokenizer(texts, vocab_size=2048)
model = new_model(model_params, tokenizer)
"""

import re

from stages.core.errors import LibraError
from stages.training.model_params import ModelParams
from stages.training.pretrained import from_pretrained_kwargs

# ChatML-like turns; `<|end|>` closes both the question and the answer.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPECIAL_TOKENS = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def train_tokenizer(texts: list[str], vocab_size: int):
    """A transformers fast tokenizer with a chat template: byte-level BPE (Sennrich et al. 2016).

    At most `vocab_size` tokens, learnt from `texts` (of the train split only). Each distinct word
    counts once: by frequency, all merges would go to the few words of the requests and a new name
    would fall into letters. Digits are separate tokens, and every byte is in the alphabet, so no
    text is unknown.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = {word for text in texts for word in re.findall(r" ?[^ ]+", text)}
    tokenizer.train_from_iterator(sorted(words), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model(model_params: ModelParams, tokenizer):
    """A freshly initialised fp32 `LlamaForCausalLM` of the given size, embeddings tied.

    Raises LibraError on an invalid size or if `attention` needs hardware that isn't available.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden_size, heads = model_params.hidden_size, model_params.heads
    from_pretrained_kwargs(model_params.dtype, model_params.attention, None)
    if hidden_size % heads:
        raise LibraError(
            f"params.yaml: model.hidden_size ({hidden_size}) must be a multiple of "
            f"model.heads ({heads})"
        )
    return LlamaForCausalLM(
        LlamaConfig(
            attn_implementation=model_params.attention,
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=model_params.intermediate_size,
            num_hidden_layers=model_params.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=model_params.max_length,
            initializer_range=model_params.initializer_range,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
