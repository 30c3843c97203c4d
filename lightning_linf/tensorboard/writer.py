"""Write the table of a measured step, and its histogram, into an event file."""

import json
from typing import Any

import numpy as np

from lightning_linf.panels.table import REPORT, lay_out
from lightning_linf.quantities import LOG10_GRAD, PREFIX
from lightning_linf.record import SCHEMA_VERSION, LogHistogram, Record
from lightning_linf.tensorboard import PLUGIN_NAME


def write_record(writer: Any, record: Record) -> None:
    """Write a record's table as a tensor of float32, its histogram, and its report, in one event.

    The table, of a record with columns, has a row for each parameter tensor and a column, or
    several, for each quantity. Its metadata are JSON with ``schema``, ``tensors`` (the names of the
    rows), ``whole`` (whether there is a last row for all parameters together) and ``columns``
    (name, width, label, unit and levels of each, in order). TensorBoard keeps only the first
    metadata of a tag, and the parameters may change while training, so the tag ends in a digest of
    the metadata. The report is a tensor of one string, its JSON.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``.
        record: What to write.
    """
    # Not imported at the top, because tensorboard is not needed to log to another logger.
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
    from tensorboard.util.tensor_util import make_tensor_proto

    values = []

    def add(tag: str, tensor: Any, about: dict[str, Any]) -> None:
        content = json.dumps({"schema": SCHEMA_VERSION, **about}).encode()
        data = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content)
        metadata = SummaryMetadata(plugin_data=data, data_class=DATA_CLASS_TENSOR)
        tensor = make_tensor_proto(tensor)
        values.append(Summary.Value(tag=tag, tensor=tensor, metadata=metadata))

    if record.columns:
        table, columns = lay_out(record)
        add(columns.tag_of_series(record.tag), table, columns.to_json())
    if record.report is not None:
        add(record.tag + REPORT, json.dumps(record.report, allow_nan=False), {})
    if record.histogram is not None:
        # "geometry/heterogeneity_per_tensor/optimizer0" has its histogram beside it.
        _, slash, suffix = record.tag.removeprefix(PREFIX).partition("/")
        tag = LOG10_GRAD.tag + slash + suffix
        values.append(Summary.Value(tag=tag, histo=_histogram(record.histogram)))
    # This opens a new file if the writer has been closed, as Lightning's is after training.
    writer._get_file_writer().add_summary(Summary(value=values), record.step)
    writer.flush()  # now, for an open page, and not with the next full buffer or after two minutes


def _histogram(histogram: LogHistogram) -> Any:
    """Turn counts into TensorBoard's protobuf, with each entry counted at the center of its bin."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    edges, counts = np.asarray(histogram.edges), np.asarray(histogram.counts)
    centers = (edges[1:] + edges[:-1]) / 2
    return HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=(counts * centers).sum(),
        sum_squares=(counts * centers**2).sum(),
        # A bucket starts where the one before it ends, so an empty one comes first.
        bucket_limit=edges,
        bucket=[0, *counts],
    )
