"""The offline teacher or judge as a server that counts tokens as real ones do, with a byte-level BPE, not by characters.

    python tests/helpers/counting.py teacher --port 0    # or judges; options as of `python -m stages.tools serve`

Its tokenizer has seen nothing of this project: it is trained, when the server starts, on the descriptions of installed packages.
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
        asked = 3 + sum(
            4 + len(tokenizer.encode(offline.content_text(message.get("content"))).ids)
            for message in body["messages"]
        )
        told = sum(len(tokenizer.encode(text).ids) for text in texts)
        return {"prompt_tokens": asked, "completion_tokens": told, "total_tokens": asked + told}

    offline.usage = usage
    serve.main(sys.argv[1:])


if __name__ == "__main__":
    main()
