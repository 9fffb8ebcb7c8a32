"""The report page and the figures: inputs, plots as SVG, the table of example answers, templates.
"""
