"""The policy engine: judges requests and answers by the constitution, over HTTP.

`config` is light; `evaluator` needs the `engine` extra and imports torch only when it loads.
"""
