"""The laboratory: studies of a frozen policy that say whether POISE is worth it on a given model and task.

`value`: how well the probe predicts what a prompt will earn. `variance`: what each baseline does to the variance of the
policy gradient. Each study is a folder (see `study.py`), written by one command, resumable.
"""
