"""The panels of runs as PNG, SVG and PDF files, for papers and for machines without a browser."""
