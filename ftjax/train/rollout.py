"""Batches that the student writes: its own answers to the training prompts, drawn anew each step."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ftjax import tree
from ftjax.data.encoded import IGNORED
from ftjax.data.tasks.task import Question, Text
from ftjax.decode.batches import bucket, lay
from ftjax.decode.generate import continuations
from ftjax.errors import UserError
from ftjax.kinds import require
from ftjax.kinds.lm import questions
from ftjax.kinds.shots import answer_in, as_text
from ftjax.train.build import Data, Parts
from ftjax.train.evaluate import edges, new_tokens, prompt_of
from ftjax.train.fields import Fields

Tree = Any
Arrays = dict[str, np.ndarray]
SEED = 0x5EED  # of the draws between the two kinds of batches, apart from the order of the data


class Rollout:
    """`rollout(step, train, frozen, batch) -> batch`: the prompts of a host batch, one a row, with drawn answers.

    A batch holds what a language model's do (see `Loader`), `samples` rows a prompt one after another: `input_ids`,
    `segment_ids`, `position_ids` `[B x samples, T]`, `label_positions`, `labels` `[B x samples, M]`, the drawn tokens,
    an end included; an encoder-decoder's, its encoder's tokens as well. With a `reward`, fp32 `rewards` and
    `advantages` `[B x samples]` too: an answer's reward less the mean of its prompt's.

    Answers depend on (seed, step, row, sample) and the weights alone.
    """

    def __init__(
        self,
        f: Fields,
        parts: Parts,
        data: Data,
        *,
        samples: int = 1,
        share: float = 1.0,
        reward: Callable[[dict[str, Any]], float] | None = None,
    ):
        """Args:
          samples: answers a prompt.
          share: the probability that a step's batch is the student's; else it is the data's, as it came.
          reward: of an answer's record, `{prompt, completion, references}`.
        Raises:
          UserError: several processes; data that are no prompts with an answer; answers that the rows have no room for.
        """
        what = f"distill={f.distill.name}"
        if jax.process_count() > 1:
            raise UserError(f"{what}: the student writes in one process only, here are {jax.process_count()}")
        kinds = {type(example).__name__ for example in data.examples if not isinstance(example, Text | Question)}
        if kinds or parts.task.chunked or not parts.kind.writes:
            raise UserError(f"{what}: needs prompts with an answer each; task.name={f.task.name} has none here")
        temperature = f.distill.sampling_temperature
        require("distill.sampling_temperature", temperature, temperature > 0, "a number above 0")
        self._parts, self._encoded, self._reward = parts, data.encoded, reward
        self._seed, self._samples, self._share, self._temperature = f.seed, samples, share, temperature
        self._left = f.data.pad_side == "left"
        self._new = new_tokens(parts, data.encoded, f.generate.max_new_tokens)
        self._longest = longest = max(len(prompt_of(data.encoded, i)) for i in range(len(data.encoded)))
        added = parts.around.size if parts.around else 0
        seq2seq = data.encoded.source is not None
        if (needed := self._new + (1 if seq2seq else longest - added)) > f.task.max_length:
            raise UserError(
                f"{what}: a prompt of {longest - added} tokens and an answer of {self._new} are over"
                f" task.max_length={f.task.max_length}; set it to {needed}, or generate.max_new_tokens lower"
            )
        if reward is not None:
            if data.encoded.truncated:
                raise UserError(f"{what}: {data.encoded.truncated} texts are cut, and with them what a reward compares")
            asked = questions(data.examples, data.encoded, parts.tokenizer)
            self._references = {prompt: references for prompt, (_, references) in asked.items()}
        self._examples = data.examples

    def __call__(self, step: int, train: Tree, frozen: Tree, batch: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        if self._share < 1 and np.random.default_rng([SEED, self._seed, step]).random() >= self._share:
            return batch
        numbers = batch["example"].max(1)  # -1 in an empty row
        real = numbers >= 0
        prompts = [prompt_of(self._encoded, i) for i in numbers[real]]
        tokens, lengths = self._draw(step, prompts, tree.join(train, frozen), len(numbers))
        asked = [[self._parts.setting.decoder_start]] * len(prompts) if self._encoded.source else prompts
        there = np.flatnonzero(real)
        rows = (there[:, None] * self._samples + np.arange(self._samples)).ravel()
        written = self._lay(
            [np.asarray(prompt, np.int32) for prompt in asked for _ in range(self._samples)],
            [line[:n] for line, n in zip(tokens[: len(there)].reshape(len(rows), -1), lengths[: len(there)].ravel())],
            rows,
            len(numbers) * self._samples,
        )
        written |= {name: np.repeat(x, self._samples, 0) for name, x in batch.items() if name.startswith("encoder_")}
        if self._reward is not None:
            written |= self._rewards(numbers[real], tokens, lengths, rows, len(numbers) * self._samples)
        return written

    def _draw(self, step: int, prompts: list[list[int]], variables: Tree, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[rows, samples, N]` and lengths `[rows, samples]` for each prompt, then for filler."""
        parts = self._parts
        drawn = continuations(
            parts.model, variables["params"], *lay(prompts, rows, self._longest),
            adapters=parts.method.expand(variables["adapters"], variables["params"]),
            max_new_tokens=self._new, do_sample=True, temperature=self._temperature,
            num_return_sequences=self._samples, seed=self._seed,
            example_ids=step * rows + np.arange(rows), **edges(parts),
        )  # fmt: skip
        return drawn.tokens, drawn.lengths

    def _lay(self, asked: list[np.ndarray], answers: list[np.ndarray], rows: np.ndarray, count: int) -> Arrays:
        """The arrays of a batch of `count` rows, from what a decoder reads, its answers, and the row of each."""
        read = 1 if self._encoded.source else bucket(max(map(len, asked)), largest=self._longest)
        length = read + self._new - 1
        batch = {name: np.zeros((count, length), np.int32) for name in ("input_ids", "segment_ids", "position_ids")}
        batch["label_positions"] = np.zeros((count, self._new), np.int32)
        batch["labels"] = np.full((count, self._new), IGNORED, np.int32)
        for row, prompt, answer in zip(rows, asked, answers):
            ids = np.concatenate([prompt, answer])[:-1]  # the last predicts nothing
            start = length - len(ids) if self._left else 0
            here = slice(start, start + len(ids))
            batch["input_ids"][row, here], batch["segment_ids"][row, here] = ids, 1
            batch["position_ids"][row, here] = np.arange(len(ids))
            batch["label_positions"][row, : len(answer)] = start + len(prompt) - 1 + np.arange(len(answer))
            batch["labels"][row, : len(answer)] = answer
        return batch

    def _rewards(
        self, numbers: np.ndarray, tokens: np.ndarray, lengths: np.ndarray, rows: np.ndarray, count: int
    ) -> Arrays:
        """Answers are read as an evaluation reads them."""
        assert self._reward is not None
        setting, given = self._parts.setting, []
        for number, *drawn in zip(numbers, tokens, lengths):
            example = self._examples[self._encoded.rows[number]]
            prompt = as_text(example, "").prompt
            texts = [setting.tokenizer.decode(line[:n], skip_special_tokens=True) for line, n in zip(*drawn)]
            known = {"prompt": prompt, "references": self._references[prompt]}
            records = [{**known, "completion": answer_in(setting, text, example)} for text in texts]
            given.append([self._reward(record) for record in records])
        rewards = np.asarray(given, np.float32)
        made = {name: np.zeros(count, np.float32) for name in ("rewards", "advantages")}
        made["rewards"][rows] = rewards.ravel()
        made["advantages"][rows] = (rewards - rewards.mean(1, keepdims=True)).ravel()
        return made
