"""What the TensorBoard plugin and the HTML report share: tables of records, and the panels."""
