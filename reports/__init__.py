"""From directories of runs to tables and pictures: runs, logs -> tree -> protocols, methods -> tables -> pictures."""
