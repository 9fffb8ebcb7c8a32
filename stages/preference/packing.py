"""Rows that share a prompt, packed: each distinct answer once, after its prompt.

The rows of a batch that share a prompt become one packed row (or a few):

    prompt[:-1] | prompt[-1] chosen_0[:-1] | prompt[-1] chosen_1[:-1] | prompt[-1] rejected_0[:-1]

Each answer has the positions it would have right after the prompt and attends to the prompt and
itself only, so that every log-probability is that of a row of its own. `layout` decides which rows
are packed together, so that little is padding and few scores are computed for nothing.
"""

import numpy as np
import torch

WIDTHS = 6  # of packed rows that are compared
Lengths = list[tuple[int, list[int]]]  # tokens of each prompt, and of each of its answers
Layout = list[dict[int, list[int]]]  # of each packed row: {prompt: [answer, ...]}


def equal_rows(input_ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(indices of the distinct rows, for each row the number of its distinct row)."""
    numbers: dict[tuple, int] = {}
    firsts, numbered = [], []
    for i, row in enumerate(torch.stack([input_ids, labels], dim=1).flatten(1).tolist()):
        if (key := tuple(row)) not in numbers:
            numbers[key] = len(numbers)
            firsts.append(i)
        numbered.append(numbers[key])
    device = input_ids.device
    return torch.tensor(firsts, device=device), torch.tensor(numbered, device=device)


def pack(
    input_ids: torch.Tensor, labels: torch.Tensor, per_token: float | None
) -> dict[str, torch.Tensor]:
    """Rows (rows x tokens) as fewer, denser ones (packed rows x packed tokens), on the CPU.

    A packed row holds one or more prompts, each with one or more of its answers; a prompt whose
    answers are in several rows is repeated in each. `per_token` is that of `layout`; None packs
    everything into one row. Labels are -100 outside the answer.

    Returns, for packed rows:

    - `input_ids`, `position_ids`, `shift_labels`
    - `prompt`: 1, 2, ... the prompt that a token belongs to, 0 padding
    - `answer`: 0 the prompt itself, 1, 2, ... its answers
    - `packed_index` (rows x (tokens - 1)): where in the flattened packed rows the next token of a
      row is predicted, -1 if it isn't labelled
    """
    # Distinct prompts and answers, and each row as their numbers.
    rows: list[tuple[int, int]] = []
    numbers: dict[tuple, int] = {}
    answers: list[dict[tuple, int]] = []
    for ids, marks in zip(input_ids.tolist(), labels.tolist(), strict=True):
        labelled = [i for i, mark in enumerate(marks) if mark != -100] or [1]
        start, end = labelled[0], labelled[-1] + 1
        prompt, answer = tuple(ids[:start]), tuple(ids[start:end]) if marks[start] != -100 else ()
        if (number := numbers.setdefault(prompt, len(numbers))) == len(answers):
            answers.append({})
        rows.append((number, answers[number].setdefault(answer, len(answers[number]))))
    prompts, texts = list(numbers), [list(distinct) for distinct in answers]
    lengths = [
        (len(prompt) - 1, list(map(len, of))) for prompt, of in zip(prompts, texts, strict=True)
    ]
    packs: Layout = [{p: list(range(len(of))) for p, of in enumerate(texts)}]
    if per_token is not None:
        packs = layout(lengths, per_token)
    width = max(1, _width(lengths, packs))

    names = ("input_ids", "position_ids", "shift_labels", "prompt", "answer")
    columns = {name: np.zeros((len(packs), width), np.int64) for name in names}
    columns["shift_labels"] -= 100
    starts: dict[tuple[int, int], int] = {}
    for number, packed_row in enumerate(packs):
        row = {name: column[number] for name, column in columns.items()}
        end = 0
        for p, its_answers in packed_row.items():
            prompt, last = prompts[p], len(prompts[p]) - 1
            begin, end = end, end + last
            row["input_ids"][begin:end] = prompt[:-1]
            row["position_ids"][begin:end] = np.arange(last)
            for a in its_answers:
                answer = texts[p][a]
                start, end = end, end + len(answer)
                starts[p, a] = number * width + start
                row["input_ids"][start:end] = (prompt[-1:] + answer)[: len(answer)]
                row["position_ids"][start:end] = np.arange(last, last + len(answer))
                row["shift_labels"][start:end] = answer
                row["answer"][start:end] = a + 1
            row["prompt"][begin:end] = p + 1

    columns["packed_index"] = np.full((input_ids.shape[0], input_ids.shape[1] - 1), -1)
    for index, (p, a) in zip(columns["packed_index"], rows, strict=True):
        first, count = len(prompts[p]) - 1, len(texts[p][a])
        index[first : first + count] = np.arange(starts[p, a], starts[p, a] + count)
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def layout(lengths: Lengths, per_token: float) -> Layout:
    """The cheapest of some ways to pack prompts with their answers into rows of one width.

    Narrow rows repeat prompts, wide ones compute many attention scores for nothing: a row of w
    tokens costs w x (`per_token` + w), where `per_token` is the cost of taking a token through a
    layer's matrices, in units of one attention score.
    """
    narrowest = max(prompt + max(answers) for prompt, answers in lengths)
    widest = max(narrowest, *(prompt + sum(answers) for prompt, answers in lengths))
    steps = range(WIDTHS + 1)
    widths = {narrowest + step * (widest - narrowest) // WIDTHS for step in steps}
    widths.add(2 * narrowest)
    layouts = (fill(lengths, width) for width in sorted(widths))
    return min(layouts, key=lambda rows: layout_cost(lengths, rows, per_token))


def layout_cost(lengths: Lengths, rows: Layout, per_token: float) -> float:
    """Cost of the rows, all of them as wide as the widest."""
    width = _width(lengths, rows)
    return len(rows) * width * (per_token + width)


def _width(lengths: Lengths, rows: Layout) -> int:
    """Tokens of the widest row."""
    return max(
        sum(lengths[p][0] + sum(lengths[p][1][a] for a in answers) for p, answers in row.items())
        for row in rows
    )


def fill(lengths: Lengths, width: int) -> Layout:
    """Rows of at most `width` tokens: the longest answers first, where they need the fewest tokens.

    That is a row that has the prompt already, then the one with the least room left.
    """
    rows: Layout = []
    room: list[int] = []
    for p in sorted(range(len(lengths)), key=lambda p: -lengths[p][0] - sum(lengths[p][1])):
        prompt, answers = lengths[p]
        for a in sorted(range(len(answers)), key=lambda a: -answers[a]):
            needs = [answers[a] + (0 if p in row else prompt) for row in rows]
            fits = [(need, room[i], i) for i, need in enumerate(needs) if need <= room[i]]
            if fits:
                need, _, i = min(fits)
            else:
                need, i = prompt + answers[a], len(rows)
                rows.append({})
                room.append(width)
            rows[i].setdefault(p, []).append(a)
            room[i] -= need
    return rows


def relative_cost(model) -> float:
    """`per_token` of `layout`; attention has half the rate of matrix products (two CPU cores)."""
    config = model.config.get_text_config()
    weights = sum(weight.numel() for weight in model.parameters())
    weights -= model.get_input_embeddings().weight.numel()
    return weights / config.num_hidden_layers / (4 * config.hidden_size)


def attention_mask(prompt: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Boolean mask (packed rows x 1 x tokens x tokens): a token's prompt and own answer, causal."""
    same_prompt = prompt[:, None, :] == prompt[:, :, None]
    same_answer = (answer[:, None, :] == 0) | (answer[:, None, :] == answer[:, :, None])
    tokens = prompt.shape[1]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=prompt.device).tril()
    return (same_prompt & same_answer & causal)[:, None]
