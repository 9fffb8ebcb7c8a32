"""The offline teacher or judge as a server that counts tokens with a byte-level BPE.

    python tests/helpers/counting.py teacher --port 0    # or judges; options of `... tools serve`

Its tokenizer has seen nothing of this project: it is trained on the descriptions of installed
packages when the server starts.
"""

import sys
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from stages.chat import offline
from stages.tools import serve


def trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    files = sorted(Path(sysconfig.get_paths()["purelib"]).glob("*.dist-info/METADATA"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=30_000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        (file.read_text(encoding="utf-8", errors="replace") for file in files), trainer
    )
    return tokenizer


def main() -> None:
    tokenizer = trained()

    def usage(body, texts):
        prompt = 3 + sum(
            4 + len(tokenizer.encode(offline.content_text(message.get("content"))).ids)
            for message in body["messages"]
        )
        completion = sum(len(tokenizer.encode(text).ids) for text in texts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    offline.usage = usage
    serve.main(sys.argv[1:])


if __name__ == "__main__":
    main()
