"""From directories of runs to what is shown: runs, logs -> tree -> protocols, methods -> tables -> pictures -> report.

Beside them: training (curves of a run), page (HTML), predictions (of predict.py).
"""
