"""What a run reads: one DATASET or several mixed by weight, and their labels where it trains on those."""

from collections.abc import Sequence
from dataclasses import dataclass

from melodjinn_jax.data.dataset import Dataset, open_dataset
from melodjinn_jax.data.labels import Labels, find_labels
from melodjinn_jax.errors import UserError
from melodjinn_jax.models.action_space import ActionSpace


@dataclass(frozen=True)
class Mixture:
    """DATASETs of one codec, with their weights."""

    datasets: tuple[Dataset, ...]
    weights: tuple[float, ...] = (1.0,)
    labels: tuple[Labels, ...] = ()
    """Of each DATASET; empty where a run discovers its own actions."""

    def crop_frames(self, stride: int) -> int:
        """Frames of the longest crop of whole blocks of `stride` that every record has."""
        frames = min(dataset.info.frames_per_record for dataset in self.datasets)
        # A labelled record may begin inside a block of its track.
        return frames - (stride - 1 if self.labels else 0)

    @property
    def action_space(self) -> ActionSpace:
        """That of the labels."""
        return self.labels[0].space

    def require_split(self, split: str) -> None:
        """Raise `UserError` naming a DATASET that holds no records of a split."""
        for dataset in self.datasets:
            if not dataset.info.records.get(split):
                raise UserError(
                    f"{dataset.path} has no {split} split to evaluate on: choose another evaluation.split, prepare it "
                    "from more recordings, or set runtime.evaluate false"
                )


def open_mixture(paths: Sequence[str], weights: Sequence[float] = (), actions: str = "") -> Mixture:
    """The DATASETs at `paths`, mixed by `weights` (empty: by their training records), with the labels `actions`.

    Raises `UserError` if one cannot be opened or lacks the labels, or if they do not belong together.
    """
    datasets = tuple(open_dataset(path) for path in paths)
    first = datasets[0].info
    for dataset in datasets:
        for name in ("sample_rate", "hop_length", "codec_digest"):
            here, there = getattr(dataset.info, name), getattr(first, name)
            if here != there:
                raise UserError(
                    f"{dataset.path} and {datasets[0].path} cannot be mixed, for their {name} is {here} and {there}: "
                    "prepare them with the same codec"
                )
        if not dataset.info.records.get("train"):
            raise UserError(f"{dataset.path} has no train split: give a DATASET that has one in data.datasets")
    labels = tuple(find_labels(dataset, actions) for dataset in datasets) if actions else ()
    for dataset, own in zip(datasets, labels, strict=False):
        if own.space.digest != labels[0].space.digest:
            raise UserError(
                f"{dataset.path} and {datasets[0].path} are labelled by different LAMs: "
                "name labels that both have in data.actions"
            )
    shares = tuple(weights) or tuple(float(dataset.info.records["train"]) for dataset in datasets)
    return Mixture(datasets, shares, labels)
