"""What a measurement was made with, in one line."""

from collections.abc import Iterator

from lightning_linf.report.measurement import Measurement

_PARAMETERS = "parameters"  # what `settings["coordinates"]` says of theta itself


def coordinates_of(measured: Measurement) -> str:
    """Name the coordinates: "the parameters", or a map of them."""
    coordinates = measured.settings.get("coordinates", _PARAMETERS)
    return "the parameters" if coordinates == _PARAMETERS else str(coordinates)


def settings_of(measured: Measurement) -> str:
    """Say with what it was measured, as far as the record knows."""
    text = ", ".join(_parts(measured))
    other = measured.settings.get("optimizer_coordinates")
    steps_in = f" The optimizer steps in {other}." if other is not None else ""
    return f"Measured in the coordinates of {coordinates_of(measured)}: {text}.{steps_in}"


def _parts(measured: Measurement) -> Iterator[str]:
    settings = measured.settings
    yield f"d = {measured.num_params:,}"
    if "mode" in settings:
        yield f"{settings['mode']} mode"
    batches, samples = settings.get("num_batches"), settings.get("num_samples")
    if isinstance(batches, int):
        of = ""
        if isinstance(samples, int | float):
            of = f" of {samples:,.0f} sample{'s' if samples != 1 else ''} in all"
        yield f"{batches:,} batch{'es' if batches != 1 else ''} a device{of}"
    if "num_probes" in settings:
        yield f"{settings['num_probes']} probes"
    if "dtype" in settings:
        yield f"{settings['dtype']}"
    if "matmul_precision" in settings:
        yield f"matrix products {settings['matmul_precision']}"
    if "seed" in settings:
        yield f"seed {settings['seed']}"
    if "version" in settings:
        yield f"lightning_linf {settings['version']}"
