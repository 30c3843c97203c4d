"""What is written to event files, and the TensorBoard plugin that shows it."""

PLUGIN_NAME = "geometry"  # in event files and in the addresses of the plugin
