"""Write one record per measured step: a row for each parameter tensor, a column per quantity."""

import json
from typing import Any

import numpy as np

from lightning_linf import tags
from lightning_linf.panels.table import REPORT, lay_out
from lightning_linf.record import SCHEMA_VERSION, LogHistogram, Record
from lightning_linf.tensorboard import PLUGIN_NAME


def write_record(writer: Any, record: Record) -> None:
    """Write a record's table as a tensor of float32, its histogram, and its report.

    All are in one event. The report is a tensor of one string, its JSON. The metadata of the table
    are JSON, too: ``schema``, ``tensors`` (names of rows), ``whole`` (whether a last row is that of
    all parameters together) and ``columns`` (name, width, label, unit and levels of each, in
    order). Its tag is the record's with a digest of them: parameters may change.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``.
        record: What to write.
    """
    # Here and not above: whoever logs elsewhere need not have tensorboard.
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
    from tensorboard.util.tensor_util import make_tensor_proto

    table, columns = lay_out(record)
    values = []

    def add(tag: str, tensor: Any, about: dict[str, Any]) -> None:
        content = json.dumps({"schema": SCHEMA_VERSION, **about}).encode()
        data = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content)
        metadata = SummaryMetadata(plugin_data=data, data_class=DATA_CLASS_TENSOR)
        tensor = make_tensor_proto(tensor)
        values.append(Summary.Value(tag=tag, tensor=tensor, metadata=metadata))

    add(columns.tag_of_series(record.tag), table, columns.to_json())
    if record.report is not None:
        add(record.tag + REPORT, json.dumps(record.report, allow_nan=False), {})
    if record.histogram is not None:
        suffix = record.tag.removeprefix(tags.PREFIX).partition("/")[2]  # of several optimizers
        tag = f"{tags.LOG10_GRAD}/{suffix}" if suffix else tags.LOG10_GRAD
        values.append(Summary.Value(tag=tag, histo=_histogram(record.histogram)))
    # The writer may have closed its file, as Lightning's does after a training.
    writer._get_file_writer().add_summary(Summary(value=values), record.step)


def _histogram(histogram: LogHistogram) -> Any:
    """Turn counts into the protobuf; sums are those of bins' centres."""
    from tensorboard.compat.proto.summary_pb2 import HistogramProto

    edges, counts = np.asarray(histogram.edges), np.asarray(histogram.counts)
    centers = (edges[1:] + edges[:-1]) / 2
    return HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=counts.sum(),
        sum=(counts * centers).sum(),
        sum_squares=(counts * centers**2).sum(),
        # A first, empty bucket: readers take the lower edge of a bucket from the one before it.
        bucket_limit=edges,
        bucket=[0, *counts],
    )
