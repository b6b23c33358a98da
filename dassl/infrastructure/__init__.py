"""This project's own parts of the engine, which Dassl does not have: files, archives, downloads, processes, output."""
