"""Name the files of a run below ``runs/<name>``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SUPERSEDED = "superseded"
"""The folder in a folder of shards that keeps the shards of other settings (``trees.rollout``)."""


@dataclass(frozen=True)
class RunFiles:
    """Paths of a run's artifacts; ``root`` is ``runs/<name>``."""

    root: Path

    @property
    def questions(self) -> Path:
        return self.root / "questions.parquet"

    @property
    def steps(self) -> Path:
        return self.root / "steps"

    @property
    def shards(self) -> Path:
        """Shards of the rollout, by content; those of other settings are in its folders ``SUPERSEDED``."""
        return self.root / "shards"

    def left_shards(self) -> list[Path]:
        """Return the shards that the run's results do not use: of other settings, or damaged."""
        parts = (*self.shards.rglob(f"{SUPERSEDED}/*.parquet"), *self.shards.rglob("*.damaged"))
        return sorted(parts)

    @property
    def calls(self) -> Path:
        """Replies of models by the hash of their request (``models.generators.call_log``); no run removes them."""
        return self.root / "calls"

    @property
    def values(self) -> Path:
        return self.root / "values.parquet"

    @property
    def pairs(self) -> Path:
        return self.root / "pairs.parquet"

    @property
    def reflections(self) -> Path:
        return self.root / "reflections.parquet"

    @property
    def overlaps(self) -> Path:
        return self.root / "overlaps.parquet"

    @property
    def exports(self) -> Path:
        return self.root / "exports"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def training(self) -> Path:
        return self.root / "training.parquet"

    @property
    def responses(self) -> Path:
        return self.root / "responses"

    @property
    def scores(self) -> Path:
        return self.root / "scores.parquet"

    @property
    def held_out_trees(self) -> Path:
        return self.root / "held_out_trees"

    @property
    def continuations(self) -> Path:
        return self.root / "continuations.parquet"

    @property
    def self_correction(self) -> Path:
        return self.root / "self_correction.parquet"

    @property
    def pass_at_k(self) -> Path:
        return self.root / "pass_at_k.parquet"

    @property
    def robustness(self) -> Path:
        return self.root / "robustness.parquet"

    @property
    def ablation(self) -> Path:
        return self.root / "ablation.parquet"

    @property
    def contrasts(self) -> Path:
        return self.root / "contrasts.parquet"

    @property
    def arms(self) -> Path:
        return self.root / "arms"

    @property
    def chains(self) -> Path:
        return self.root / "chains.parquet"

    @property
    def chain_overlaps(self) -> Path:
        return self.root / "chain_overlaps.parquet"

    @property
    def chain_exports(self) -> Path:
        return self.root / "chain_exports"

    @property
    def sft_adapter(self) -> Path:
        """Adapter of the fine-tuning; a full fine-tuning has none."""
        return self.root / "sft_adapter"

    @property
    def sft_model(self) -> Path:
        """The fine-tuned model: the base with the adapter merged in, or the model of a full fine-tuning."""
        return self.root / "sft_model"

    @property
    def sft_training(self) -> Path:
        return self.root / "sft_training.parquet"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def tables(self) -> Path:
        return self.root / "tables"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"
