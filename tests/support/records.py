"""Read a whole `geometry.jsonl`."""

from lightning_linf.record import Reader


def read(path):
    """Give all records that are whole, and notes on the lines that were skipped."""
    with open(path, "rb") as file:
        reader = Reader(file)
        return [record for _, record in reader], reader.notes()
