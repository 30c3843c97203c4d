"""What the TensorBoard plugin and the HTML report share: tables of measurements, and the panels."""
