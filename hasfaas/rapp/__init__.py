"""RaPP: what a function will take on a slice of a device, and how sure that is.

Graph -> roofline -> regression -> surface, corrected by a few probe runs and then by every live batch. Importing this
room pulls numpy and attrs alone; torch is imported by the export of a graph, statsmodels by training.
"""
