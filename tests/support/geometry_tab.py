"""Event files that hold tables of the tab "Geometry", and its routes within this process."""

import json

import pytest

pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client

from lightning_linf.record import Record
from lightning_linf.tensorboard.plugin.plugin import GeometryPlugin
from lightning_linf.tensorboard.writer import write_record

TAG = "geometry/heterogeneity_per_tensor"


class Plugin:
    """The plugin's routes as TensorBoard mounts them, over an in-process reader."""

    def __init__(self, logdir):
        self.multiplexer = EventMultiplexer(tensor_size_guidance={"geometry": 0})
        self.logdir = logdir
        self.reload()
        provider = MultiplexerDataProvider(self.multiplexer, str(logdir))
        self.plugin = GeometryPlugin(TBContext(data_provider=provider, logdir=str(logdir)))
        self.apps = self.plugin.get_plugin_apps()

    def reload(self):
        self.multiplexer.AddRunsFromDirectory(str(self.logdir))
        self.multiplexer.Reload()

    def request(self, route, method="GET", **query):
        key = "/static/*" if route.startswith("/static/") else route
        client = Client(self.apps[key])
        response = client.open(f"/data/plugin/geometry{route}", query_string=query, method=method)
        if response.content_type.startswith("application/json") and key != "/static/*":
            return response.status_code, json.loads(response.data)
        return response.status_code, response.data


def entry(step, values, names=("a", "b"), **changes):
    return Record(step, TAG, {}, names, {"density": values}, **changes)


def write(folder, *records):
    writer = SummaryWriter(str(folder))
    for one in records:
        write_record(writer, one)
    writer.close()


def write_event(folder, content, array, tag=TAG, step=0):
    """Write an event of this plugin's name, whatever it holds."""
    plugin_data = SummaryMetadata.PluginData(plugin_name="geometry", content=content)
    metadata = SummaryMetadata(plugin_data=plugin_data, data_class=DATA_CLASS_TENSOR)
    value = Summary.Value(tag=tag, tensor=make_tensor_proto(array), metadata=metadata)
    writer = SummaryWriter(str(folder))
    writer._get_file_writer().add_summary(Summary(value=[value]), step)
    writer.close()


def other_parameters(folder):
    """Write records of two parameters, then of others, as after a change of the model."""
    write(folder, entry(1, [1.0, 2.0]), entry(2, [3.0, 4.0], ("c", "d")))
    write(folder, entry(3, [5.0, 6.0, 7.0], ("c", "d", "e")))
