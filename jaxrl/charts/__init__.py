"""Pictures of numbers: the only home of matplotlib. Gets plain data, and knows nothing of runs.

Figures are made by matplotlib's object interface, never by pyplot: no display, no state that threads share.
"""
