"""Tables, pictures and pages made from the results of runs.

The modules, in the order of the data: runs and logs read one run, tree collects a directory, selections and settings
sort the runs, tables holds the figures, pictures draws them, report writes the files. comparison makes report.html.

Beside them: training (curves of a run), page (HTML), predictions (of predict.py), sweep_tables (of --sweep).
"""
