"""Training: a cycle from its snapshot to a promoted or rejected adapter.

`runner` walks a cycle through its states, `stages` holds one state's work each, `jobs` the child processes that load
torch, `ml` the machine learning they do. Nothing at this level imports torch.
"""
