"""The addresses that the tab GEOMETRY asks: static files and, as JSON, the data of runs."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend.http_util import Respond
from tensorboard.plugins.base_plugin import FrontendMetadata, TBPlugin
from werkzeug.wrappers import Request

from lightning_linf.panels import payload
from lightning_linf.panels.files import STATIC
from lightning_linf.tensorboard import PLUGIN_NAME
from lightning_linf.tensorboard.plugin.source import Source

_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".txt": "text/plain",
}
_LOGGER = logging.getLogger(__name__)
_Reader = Callable[[Any, str, "_Query"], Any]  # from request context, experiment and query


class _Query:
    """The arguments of a request; a missing one is a ValueError that says which."""

    def __init__(self, arguments: Mapping[str, str]) -> None:
        self._arguments = arguments

    def __getitem__(self, name: str) -> str:
        if name not in self._arguments:
            raise ValueError(f"expected an argument `{name}`, got {sorted(self._arguments)}")
        return self._arguments[name]


class GeometryPlugin(TBPlugin):  # type: ignore[misc]  # tensorboard has no types
    """Show the records and scalars that lightning_linf has written.

    Routes below ``data/plugin/geometry/``: ``static/...``, ``runs``, ``scalars?run=``,
    ``report?run=``, ``layers?run=&tag=&column=`` and ``fan?run=&tag=&column=&row=``.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: Any) -> None:
        self._source = Source(context.data_provider)
        # A request only looks up a name here, so that it cannot reach files of other folders.
        self._static = {
            f"/static/{path.relative_to(STATIC).as_posix()}": path
            for path in STATIC.rglob("*")
            if path.suffix in _TYPES
        }

    def get_plugin_apps(self) -> dict[str, Any]:
        """Give a WSGI application for each route."""
        readers = {
            "/runs": self._read_runs,
            "/scalars": self._read_scalars,
            "/report": self._read_report,
            "/layers": self._read_layers,
            "/fan": self._read_fan,
        }
        data = {route: _json_app(reader) for route, reader in readers.items()}
        return {"/static/*": Request.application(self._serve_static), **data}

    def is_active(self) -> bool:
        """Show the tab only if TensorBoard itself has found events of this plugin."""
        return False

    def frontend_metadata(self) -> FrontendMetadata:
        """Give the name of the tab and the JavaScript module that draws it."""
        return FrontendMetadata(es_module_path="/static/panels/index.js", tab_name="Geometry")

    def _serve_static(self, request: Request) -> Any:
        _, _, name = request.path.partition(f"/plugin/{PLUGIN_NAME}")
        path = self._static.get(name)
        if path is None:
            return Respond(request, "no such file", "text/plain", code=404)
        return Respond(request, path.read_bytes(), _TYPES[path.suffix])

    def _read_runs(self, ctx: Any, experiment: str, query: _Query) -> Any:
        return self._source.runs(ctx, experiment)

    def _read_scalars(self, ctx: Any, experiment: str, query: _Query) -> Any:
        return self._source.scalars(ctx, experiment, query["run"])

    def _read_report(self, ctx: Any, experiment: str, query: _Query) -> Any:
        return payload.report(*self._source.report(ctx, experiment, query["run"]))

    def _read_layers(self, ctx: Any, experiment: str, query: _Query) -> Any:
        table, note = self._source.table(ctx, experiment, query["run"], query["tag"])
        return {**payload.layers(table, query["column"]), "note": note}

    def _read_fan(self, ctx: Any, experiment: str, query: _Query) -> Any:
        table, note = self._source.table(ctx, experiment, query["run"], query["tag"])
        return {**payload.fan(table, query["column"], int(query["row"])), "note": note}


def _json_app(read: _Reader) -> Any:
    def serve(request: Request) -> Any:
        if request.method != "GET":
            return _respond(request, {"error": f"expected GET, got {request.method}"}, 405)
        ctx = plugin_util.context(request.environ)
        experiment = plugin_util.experiment_id(request.environ)
        try:
            return _respond(request, read(ctx, experiment, _Query(request.args)), 200)
        except KeyError as error:
            return _respond(request, {"error": f"no such data: {error}"}, 404)
        except ValueError as error:
            return _respond(request, {"error": f"cannot be read: {error}"}, 400)
        except Exception as error:  # the page shows whatever TensorBoard's reader has raised
            _LOGGER.exception("%s failed", request.path)
            cause = f"{type(error).__name__}: {error}"
            return _respond(request, {"error": f"TensorBoard's reader failed: {cause}"}, 500)

    return Request.application(serve)


def _respond(request: Request, content: Any, code: int) -> Any:
    return Respond(request, json.dumps(content, allow_nan=False), "application/json", code=code)
