"""The gallery: runs that end in a page each, and what is said of them."""
