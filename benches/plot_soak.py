"""Draws what `cargo bench --bench bench -- soak` wrote: one small picture per figure, over the batches.

    python3 -m pip install matplotlib
    python3 benches/plot_soak.py target/tmp/soak.csv soak.png
"""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

# Column of the file → title and by what its figures are divided.
FIGURES = {
    "rss_bytes": ("memory of the process, MiB", 2**20),
    "state_bytes": ("state in memory, MiB", 2**20),
    "state_rows": ("rows in state", 1),
    "checkpoint_files": ("files in the checkpoint", 1),
    "checkpoint_bytes": ("checkpoint, MiB", 2**20),
    "open_handles": ("open handles", 1),
    "median_batch_ms": ("median batch, ms", 1),
}


def main(source: Path, target: Path) -> None:
    with source.open() as file:
        samples = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    if not samples:
        sys.exit(f"{source} holds no samples")
    batches = [sample["batch"] for sample in samples]
    _, places = pyplot.subplots(4, 2, figsize=(12, 12), constrained_layout=True)
    for place, (column, (title, unit)) in zip(places.flat, FIGURES.items()):
        place.plot(batches, [sample[column] / unit for sample in samples], linewidth=1)
        place.set_title(title, fontsize=10)
        # From zero, so that what is level looks level.
        place.set_ylim(bottom=0)
        place.grid(alpha=0.3)
    for place in list(places.flat)[len(FIGURES) :]:
        place.set_axis_off()
    pyplot.savefig(target, dpi=120)
    print(f"{target}: {len(samples)} samples over {int(batches[-1])} batches")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) == 3 else "soak.png"))
