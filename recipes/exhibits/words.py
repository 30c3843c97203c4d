"""The index of the gallery: what is seen in each page, written from its records."""
