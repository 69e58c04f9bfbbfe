"""Which of a teacher's answers are good: by checks, by ratings, by what is known of labelled ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.sharding import Mesh

from ftjax.distill import sequence
from ftjax.distill.sequence import Least, Record, Verifier
from ftjax.errors import UserError
from ftjax.train.critic import Critic, rate

CHECKS = ("reference", "sql", "json", "pattern")


class Verdict(NamedTuple):
    """The answers that are left, with what is known of each; the least ratings of those filters that have one, by the
    filter; what quality goes with what quantity, empty without labels."""

    records: list[Record]
    least: dict[str, float]
    curve: dict[str, Any]


class Judge(NamedTuple):
    """`keep`: filters in their order, as they were given and what they mean. `critic` rates in batches of `batch_size`.
    What is valid is known of `labelled` records, or `check` says it of the answers themselves."""

    keep: list[tuple[str, Least | Verifier]]
    critic: Critic | None
    labelled: list[Record]
    check: Verifier | None
    batch_size: int
    mesh: Mesh

    def __call__(self, records: Sequence[Record]) -> Verdict:
        """Rates, labels and filters.

        Raises:
          UserError: a filter that none passes; nothing valid among what is labelled; as `rate`.
        """
        records, labelled = self._rated(records), self._rated(self.labelled)
        if self.check:
            labelled = records = [{**record, "valid": self.check(record)} for record in records]
        least = {what: how.over(labelled) for what, how in self.keep if isinstance(how, Least)}
        curve = _curve(labelled) if labelled else {}
        for what, how in self.keep:
            right = sequence.at_least(how.rating, least[what]) if isinstance(how, Least) else how
            records = sequence.keep(records, right, f"--keep={what}")
        return Verdict(records, least, curve)

    def _rated(self, records: Sequence[Record]) -> list[Record]:
        if not self.critic or not records:
            return list(records)
        pairs = [(record["prompt"], record["completion"]) for record in records]
        ratings = rate(self.critic, pairs, self.batch_size, self.mesh)
        return [{**record, "critic": rating} for record, rating in zip(records, ratings, strict=True)]


def _curve(labelled: Sequence[Record]) -> dict[str, Any]:
    """How many are labelled, the share of valid ones, and a curve by each rating that all of them have."""
    valid = [record["valid"] for record in labelled]
    names = [name for name in ("score", "critic") if all(name in record for record in labelled)]
    ratings = {name: [record[name] for record in labelled] for name in names}
    if len(names) == 2:
        ratings["augmented"] = [sequence.augmented(record) for record in labelled]
    curves = {name: sequence.quality_curve(of_each, valid) for name, of_each in ratings.items()}
    return {"labelled": len(labelled), "valid": sum(valid) / len(valid), **curves}


def make_judge(keep: Sequence[str], critic: Critic | None, labelled: str, batch_size: int, mesh: Mesh) -> Judge:
    """The judge that the flags of `ftjax teach --sequences` ask for; `labelled` is a check's name or a file, or ''.

    Raises:
      UserError: a filter that does not exist, or lacks its critic, its labelled records or their scores.
    """
    filters = [(what, sequence.least(what, "--keep") or sequence.verifier(what, "--keep")) for what in keep]
    check = sequence.verifier(labelled, "--labelled") if labelled.partition(":")[0] in CHECKS else None
    records = sequence.read_labelled(labelled) if labelled and not check else []
    for what, how in filters:
        if not isinstance(how, Least):
            continue
        if how.rating == "critic" and not critic:
            raise UserError(f"--keep={what}: rated by whom? give --critic=RUN|MODEL")
        if how.by_recall and not labelled:
            raise UserError(f"--keep={what}: recall of what? give --labelled=FILE.jsonl, or a check")
        if how.by_recall and how.rating == "score" and not all("score" in record for record in records):
            raise UserError(f"--keep={what}: not all rows of --labelled={labelled} have a score")
    return Judge(filters, critic, records, check, batch_size, mesh)
