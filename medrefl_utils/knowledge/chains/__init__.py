"""Chains of reasoning along the paths of a graph: written by rule or model, marked, filtered and exported.

``table`` writes them and collects all that is known of each question; ``text`` is what a chain may say, and its forms;
``rule`` and ``phrases`` write without a model; ``support`` holds each step against the graph; ``filter`` asks a model
with and without them; ``exports`` writes the files for others.
"""
