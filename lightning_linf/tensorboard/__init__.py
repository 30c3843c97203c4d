"""Write measurements to TensorBoard's event files, and show them in a tab of TensorBoard."""

PLUGIN_NAME = "geometry"  # stands in event files and in the addresses that the plugin serves
